// Which work of a step is a CTA's, from the lengths. Up to 32 sequences a warp has in its lanes; for more an index of
// prefix sums comes before (index_sequences).
#pragma once

#include "cuda/common/find_sequence.cuh"
#include "cuda/common/math.h"
#include "cuda/sm90/decode/params.h"
#include "cuda/sm90/decode/split.h"

namespace openmsa::cuda::sm90::decode {

/// Sum of the lanes before this one.
__device__ __forceinline__ std::int32_t sum_before(std::int32_t mine, int lane) {
  std::int32_t sum = mine;
#pragma unroll 1
  for (int distance = 1; distance < 32; distance *= 2) {
    const std::int32_t more = __shfl_up_sync(kFullWarp, sum, distance);
    if (lane >= distance) sum += more;
  }
  return sum - mine;
}

/// A sequence, its work, and that of all sequences before it.
struct SequencePlace {
  std::int32_t sequence;
  SequenceView view;
  SequenceWork work;
  std::int32_t units_before;
};

/// Sequence `lane` of a small batch; lanes past the batch have none. Thousands of warps that ask for the same few lines
/// of the L2 cache wait for each other: one warp of a CTA is enough.
__device__ __forceinline__ SequenceView lane_sequence(const SelectParams& p, int lane) {
  return lane < p.batch.batch ? p.batch.sequence(lane, LdCg{}) : SequenceView{0, 0, 0, 0};
}

/// A batch that has its sequences in the lanes of a warp.
class SequenceLanes {
 public:
  __device__ __forceinline__ SequenceLanes(const SelectParams& p, const SequenceView& of_lane)
      : view(of_lane), work(sequence_work(view, p.served, p.rules, p.tile_queries)) {}

  __device__ __forceinline__ std::int32_t units() const { return __reduce_add_sync(kFullWarp, work.units()); }

  __device__ __forceinline__ SequencePlace at(int owner, int lane) const {
    const auto before = [&](std::int32_t x) { return __reduce_add_sync(kFullWarp, lane < owner ? x : 0); };
    return {owner,
            {__shfl_sync(kFullWarp, view.q_row, owner), __shfl_sync(kFullWarp, view.seqlen_q, owner),
             __shfl_sync(kFullWarp, view.k_row, owner), __shfl_sync(kFullWarp, view.seqlen_k, owner)},
            {__shfl_sync(kFullWarp, work.query_tiles, owner), __shfl_sync(kFullWarp, work.key_units, owner)},
            before(work.units())};
  }

  SequenceView view;
  SequenceWork work;
};

/// Entries of the index; as lengths, they are read while earlier kernels may still run.
__device__ __forceinline__ std::int32_t before(const std::int32_t* sums, std::int32_t sequence) {
  return __ldcg(sums + sequence);
}
__device__ __forceinline__ std::int32_t in_all(const SelectParams& p, const std::int32_t* sums) {
  return before(sums, p.batch.batch);
}

/// A place that the index knows.
__device__ __forceinline__ SequencePlace indexed_place(const SelectParams& p, std::int32_t sequence) {
  const SequenceView view = p.batch.sequence(sequence, LdCg{});
  return {sequence, view, sequence_work(view, p.served, p.rules, p.tile_queries), before(p.index.units, sequence)};
}

/// What a CTA takes of one query tile: key units [begin, end).
struct Segment {
  std::int32_t sequence;
  SequenceView view;
  std::int32_t first_query;  // of the tile, in its sequence
  std::int32_t begin;
  std::int32_t end;

  __device__ __forceinline__ bool exists() const { return begin < end; }
};

/// The segments of this CTA, one after the other. of_lane: lane_sequence(), where there is no index. It may have been
/// read before an earlier kernel has written the lengths: segments are then useless, but harmless.
class TileScheduler {
 public:
  __device__ __forceinline__ TileScheduler(const SelectParams& p, const SequenceView& of_lane, int lane)
      : p_(&p), lane_(lane), lanes_(p, of_lane) {
    const std::int32_t units = is_indexed(p) ? in_all(p, p.index.units) : lanes_.units();
    const std::int32_t per_cta = units_per_cta(units, static_cast<std::int32_t>(gridDim.x));
    unit_ = per_cta * static_cast<std::int32_t>(blockIdx.x);
    end_ = min(units, unit_ + per_cta);
    if (!is_indexed(p)) units_before_ = sum_before(lanes_.work.units(), lane);
  }

  /// The first one, or one that does not exist.
  __device__ __forceinline__ Segment first() {
    Segment segment{};
    next(segment);
    return segment;
  }

  __device__ __forceinline__ bool next(Segment& segment) {
    if (unit_ >= end_) return false;
    const SequencePlace place = owner_of(unit_);
    segment.sequence = place.sequence;
    segment.view = place.view;
    const std::int32_t key_units = place.work.key_units;
    const std::int32_t tile = segment.view.seqlen_q <= p_->tile_queries ? 0 : (unit_ - place.units_before) / key_units;
    const std::int32_t tile_begin = place.units_before + tile * key_units;
    segment.first_query = tile * p_->tile_queries;
    segment.begin = unit_ - tile_begin;
    segment.end = min(end_ - tile_begin, key_units);
    unit_ = tile_begin + segment.end;
    return true;
  }

 private:
  __device__ __forceinline__ SequencePlace owner_of(std::int32_t unit) const {
    if (is_indexed(*p_)) {
      return indexed_place(*p_, find_sequence_together({p_->index.units, 1}, p_->batch.batch, unit, lane_, LdCg{}));
    }
    const std::uint32_t owner =
        __ballot_sync(kFullWarp, unit >= units_before_ && unit < units_before_ + lanes_.work.units());
    return lanes_.at(__ffs(owner) - 1, lane_);
  }

  const SelectParams* p_;
  int lane_;
  std::int32_t unit_, end_;  // units of this CTA still to go
  SequenceLanes lanes_;
  std::int32_t units_before_ = 0;  // this lane's sequence
};

/// Query rows [row, row + count) of one sequence.
struct QueryPart {
  SequenceView view;
  std::int32_t sequence;  // batch.batch: padding rows, which see nothing
  std::int32_t row;
  std::int32_t count;     // 0: there is no such part
  std::int32_t position;  // of the first row's key
};

/// Up to `most` rows of a sequence from its query `query` on.
__device__ __forceinline__ QueryPart part_of(std::int32_t sequence, const SequenceView& view, std::int32_t query,
                                             std::int32_t most) {
  return {view, sequence, view.q_row + query, min(most, view.seqlen_q - query), view.seqlen_k - view.seqlen_q + query};
}

/// Padding rows [row, row + count), which see nothing.
__device__ __forceinline__ QueryPart padding_part(const SelectParams& p, std::int32_t row, std::int32_t count) {
  QueryPart part{};
  part.sequence = p.batch.batch;
  part.row = row;
  part.count = count;
  part.position = -count;
  return part;
}

/// Rows [row, end) as far as they belong to the sequence of the first one.
__device__ __forceinline__ QueryPart find_part(const SelectParams& p, std::int32_t row, std::int32_t end, int lane) {
  if (p.batch.batch > kLaneSequences) {
    const std::int32_t sequence = find_sequence_together(p.batch.cu_seqlens_q, p.batch.batch + 1, row, lane, LdCg{});
    if (sequence == p.batch.batch) return padding_part(p, row, end - row);
    const SequenceView view = p.batch.sequence(sequence, LdCg{});
    return part_of(sequence, view, row - view.q_row, end - row);
  }
  const SequenceLanes lanes(p, lane_sequence(p, lane));
  const std::uint32_t owner =
      __ballot_sync(kFullWarp, lanes.view.q_row <= row && row < lanes.view.q_row + lanes.view.seqlen_q);
  if (owner == 0) return padding_part(p, row, end - row);
  const SequencePlace place = lanes.at(__ffs(owner) - 1, lane);
  return part_of(place.sequence, place.view, row - place.view.q_row, end - row);
}

/// The part of group `group` where p.served is a range: each of its sequences is cut into groups of up to
/// p.group_queries query rows. A part without rows: there is no such group.
__device__ __forceinline__ QueryPart find_group(const SelectParams& p, std::int32_t group, int lane) {
  if (is_indexed(p)) {
    if (group >= in_all(p, p.index.groups)) return {};
    const std::int32_t sequence = find_sequence_together({p.index.groups, 1}, p.batch.batch, group, lane, LdCg{});
    const std::int32_t query = (group - before(p.index.groups, sequence)) * p.group_queries;
    return part_of(sequence, p.batch.sequence(sequence, LdCg{}), query, p.group_queries);
  }
  const SequenceLanes lanes(p, lane_sequence(p, lane));
  const std::int32_t mine = query_groups(lanes.view, p.served, p.group_queries), before = sum_before(mine, lane);
  const std::uint32_t owner = __ballot_sync(kFullWarp, before <= group && group < before + mine);
  if (owner == 0) return {};
  const int at = __ffs(owner) - 1;
  const std::int32_t query = (group - __shfl_sync(kFullWarp, before, at)) * p.group_queries;
  return part_of(at, lanes.at(at, lane).view, query, p.group_queries);
}

}  // namespace openmsa::cuda::sm90::decode
