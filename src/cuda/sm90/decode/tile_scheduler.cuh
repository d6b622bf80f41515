// Which work of a step is a CTA's, from the lengths: a warp keeps those of 32 sequences at a time in its lanes.
#pragma once

#include "cuda/common/math.h"
#include "cuda/sm90/decode/params.h"
#include "cuda/sm90/decode/split.h"

namespace openmsa::cuda::sm90::decode {

/// 32 sequences and their work, one per lane; lanes past the batch have none.
class SequenceWindow {
 public:
  __device__ __forceinline__ SequenceWindow(const SelectParams& p, std::int32_t first, int lane)
      : first_(first), lane_(lane) {
    if (first + lane < p.batch.batch) view = p.batch.sequence(first + lane, LdCg{});
    work = sequence_work(view, p.rules, p.tile_queries);
  }

  /// Units and tiles of all sequences before each lane's, given those before the first one.
  __device__ __forceinline__ void scan(std::int32_t units, std::int32_t tiles) {
    units_before = work.units();
    tiles_before = work.query_tiles;
#pragma unroll 1
    for (int distance = 1; distance < 32; distance *= 2) {
      const std::int32_t more_units = __shfl_up_sync(kFullWarp, units_before, distance);
      const std::int32_t more_tiles = __shfl_up_sync(kFullWarp, tiles_before, distance);
      if (lane_ >= distance) {
        units_before += more_units;
        tiles_before += more_tiles;
      }
    }
    units_before += units - work.units();
    tiles_before += tiles - work.query_tiles;
  }

  __device__ __forceinline__ std::int32_t sequence_of(int lane) const { return first_ + lane; }
  __device__ __forceinline__ SequenceView view_of(int lane) const {
    return {__shfl_sync(kFullWarp, view.q_row, lane), __shfl_sync(kFullWarp, view.seqlen_q, lane),
            __shfl_sync(kFullWarp, view.k_row, lane), __shfl_sync(kFullWarp, view.seqlen_k, lane)};
  }

  SequenceView view{0, 0, 0, 0};
  SequenceWork work;
  std::int32_t units_before;
  std::int32_t tiles_before;

 private:
  std::int32_t first_;
  int lane_;
};

/// What a CTA takes of one query tile: key units [begin, end).
struct Segment {
  std::int32_t number;  // among those of its query tile
  SegmentRange range;   // of the query tile
  std::int32_t sequence;
  SequenceView view;
  std::int32_t first_query;  // of the tile, in its sequence
  std::int32_t begin;
  std::int32_t end;

  __device__ __forceinline__ bool exists() const { return begin < end; }
};

/// The segments of this CTA, one after the other. It may be begun with lengths that are about to change, or are none
/// yet; then they are good for nothing, but do no harm.
class TileScheduler {
 public:
  __device__ __forceinline__ TileScheduler(const SelectParams& p, int lane)
      : p_(&p), lane_(lane), next_(32), window_(p, 0, lane) {
    std::int32_t units = window_.work.units();
    for (std::int32_t first = 32; first < p.batch.batch; first += 32) {
      units += SequenceWindow(p, first, lane).work.units();
    }
    units = __reduce_add_sync(kFullWarp, units);
    per_cta_ = units_per_cta(units, p.lists.ctas);
    unit_ = per_cta_ * static_cast<std::int32_t>(blockIdx.x);
    end_ = min(units, unit_ + per_cta_);
    window_.scan(0, 0);
  }

  /// Whether the lengths still are what they were when it was begun.
  __device__ __forceinline__ bool is_current() const {
    if (p_->batch.batch > 32) return false;
    bool is_same = true;
    if (lane_ < p_->batch.batch) is_same = p_->batch.sequence(lane_, LdCg{}) == window_.view;
    return __all_sync(kFullWarp, is_same);
  }

  __device__ __forceinline__ std::int32_t kept() const { return kept_candidates(per_cta_, p_->rules); }

  /// The first one, or one that does not exist.
  __device__ __forceinline__ Segment first() {
    Segment segment{};
    next(segment);
    return segment;
  }

  __device__ __forceinline__ bool next(Segment& segment) {
    if (unit_ >= end_) return false;
    std::uint32_t owner;
    while ((owner = __ballot_sync(kFullWarp, unit_ >= window_.units_before &&
                                                 unit_ < window_.units_before + window_.work.units())) == 0) {
      if (next_ >= p_->batch.batch) return false;
      const std::int32_t units = __shfl_sync(kFullWarp, window_.units_before + window_.work.units(), 31);
      const std::int32_t tiles = __shfl_sync(kFullWarp, window_.tiles_before + window_.work.query_tiles, 31);
      window_ = SequenceWindow(*p_, next_, lane_);
      window_.scan(units, tiles);
      next_ += 32;
    }
    const int lane = __ffs(owner) - 1;
    segment.sequence = window_.sequence_of(lane);
    segment.view = window_.view_of(lane);
    const std::int32_t key_units = __shfl_sync(kFullWarp, window_.work.key_units, lane);
    const std::int32_t before = __shfl_sync(kFullWarp, window_.units_before, lane);
    const std::int32_t tile = segment.view.seqlen_q <= p_->tile_queries ? 0 : (unit_ - before) / key_units;
    const std::int32_t tile_begin = before + tile * key_units;
    segment.first_query = tile * p_->tile_queries;
    segment.begin = unit_ - tile_begin;
    segment.end = min(end_ - tile_begin, key_units);
    const std::int32_t tile_number = __shfl_sync(kFullWarp, window_.tiles_before, lane) + tile;
    segment.range = segment_range(tile_begin, key_units, per_cta_, tile_number);
    segment.number = static_cast<std::int32_t>(blockIdx.x) + tile_number - segment.range.first;
    unit_ = tile_begin + segment.end;
    return true;
  }

 private:
  const SelectParams* p_;
  int lane_;
  std::int32_t per_cta_, unit_, end_;  // units of this CTA still to go
  std::int32_t next_;                  // first sequence after the window
  SequenceWindow window_;
};

/// Query rows [row, row + count) of one sequence, and where the candidates of its query tiles lie.
struct QueryPart {
  SequenceView view;
  std::int32_t sequence;  // batch.batch: padding rows, which see nothing
  std::int32_t row;
  std::int32_t count;
  std::int32_t position;  // of the first row's key
  // About the sequence; with candidates only.
  SequenceWork work;
  std::int32_t units_before;
  std::int32_t tiles_before;
  std::int32_t per_cta;

  /// Segments of the tile that holds query `query` of the sequence.
  __device__ __forceinline__ SegmentRange segments(const SelectParams& p, std::int32_t query) const {
    const std::int32_t tile = query / p.tile_queries;
    return segment_range(units_before + tile * work.key_units, work.key_units, per_cta, tiles_before + tile);
  }
};

/// Rows [row, end) as far as they belong to the sequence of the first one.
__device__ __forceinline__ QueryPart find_part(const SelectParams& p, std::int32_t row, std::int32_t end, int lane) {
  const bool has_candidates = p.lists.ranked != nullptr;
  QueryPart part{};
  part.sequence = p.batch.batch;
  part.row = row;
  part.count = end - row;
  std::int32_t units = 0, tiles = 0;  // of this lane's sequences in earlier windows
#pragma unroll 1
  for (std::int32_t first = 0; first < p.batch.batch; first += 32) {
    SequenceWindow window(p, first, lane);
    const std::uint32_t owner =
        __ballot_sync(kFullWarp, window.view.q_row <= row && row < window.view.q_row + window.view.seqlen_q);
    if (owner != 0) {
      const int at = __ffs(owner) - 1;
      part.sequence = first + at;
      part.view = window.view_of(at);
      if (!has_candidates) break;
      // Sequences in front of it, in this window and in earlier ones.
      part.units_before = __reduce_add_sync(kFullWarp, units + (lane < at ? window.work.units() : 0));
      part.tiles_before = __reduce_add_sync(kFullWarp, tiles + (lane < at ? window.work.query_tiles : 0));
      part.work = {__shfl_sync(kFullWarp, window.work.query_tiles, at),
                   __shfl_sync(kFullWarp, window.work.key_units, at)};
    }
    units += window.work.units();
    tiles += window.work.query_tiles;
  }
  if (part.sequence == p.batch.batch) {
    part.position = -part.count;
    return part;
  }
  part.count = min(end, part.view.q_row + part.view.seqlen_q) - row;
  part.position = part.view.seqlen_k - part.view.seqlen_q + row - part.view.q_row;
  if (has_candidates) part.per_cta = units_per_cta(__reduce_add_sync(kFullWarp, units), p.lists.ctas);
  return part;
}

}  // namespace openmsa::cuda::sm90::decode
