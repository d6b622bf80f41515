// A warp's walk along the segments of its block (split.h): the lengths of 32 sequences at a time lie in its lanes.
#pragma once

#include "cuda/sm90/decode/params.h"
#include "cuda/sm90/decode/split.h"

namespace openmsa::cuda::sm90 {

inline constexpr std::uint32_t kAllLanes = 0xffffffffu;

/// What a block takes of one query tile: key tiles [begin, end).
struct Segment {
  std::int32_t number;
  std::int32_t sequence;
  SequenceView view;
  std::int32_t first_query;  // of the tile, in its sequence
  std::int32_t begin;
  std::int32_t end;
  SegmentRange range;  // all segments of this query tile
};

class SegmentWalk {
 public:
  __device__ __forceinline__ SegmentWalk(const DecodeSelectParams& p, int lane) : p_(p), lane_(lane) {
    load(0);
    std::int64_t units = work_.units();
    for (std::int32_t first = 32; first < p.batch.batch; first += 32) {
      load(first);
      units += work_.units();
    }
    for (int distance = 16; distance > 0; distance /= 2) units += __shfl_xor_sync(kAllLanes, units, distance);
    per_block_ = units_per_block(units, gridDim.x);
    unit_ = per_block_ * blockIdx.x;
    end_ = min(units, unit_ + per_block_);
    if (p.batch.batch > 32) load(0);
    scan(0, 0);
  }

  __device__ __forceinline__ bool next(Segment& segment) {
    if (unit_ >= end_) return false;
    std::uint32_t owner;
    while ((owner = __ballot_sync(kAllLanes, unit_ >= units_before_ && unit_ < units_before_ + work_.units())) == 0) {
      const std::int64_t units = __shfl_sync(kAllLanes, units_before_ + work_.units(), 31);
      const std::int32_t tiles = __shfl_sync(kAllLanes, tiles_before_ + work_.query_tiles, 31);
      load(first_ + 32);
      scan(units, tiles);
    }
    const int lane = __ffs(owner) - 1;
    segment.sequence = first_ + lane;
    segment.view = {__shfl_sync(kAllLanes, view_.q_row, lane), __shfl_sync(kAllLanes, view_.seqlen_q, lane),
                    __shfl_sync(kAllLanes, view_.k_row, lane), __shfl_sync(kAllLanes, view_.seqlen_k, lane)};
    const std::int32_t key_tiles = __shfl_sync(kAllLanes, work_.key_tiles, lane);
    const std::int64_t before = __shfl_sync(kAllLanes, units_before_, lane);
    const auto tile = static_cast<std::int32_t>((unit_ - before) / key_tiles);
    const std::int64_t tile_begin = before + std::int64_t{tile} * key_tiles;
    const std::int32_t number = __shfl_sync(kAllLanes, tiles_before_, lane) + tile;
    segment.first_query = tile * p_.tile_queries;
    segment.begin = static_cast<std::int32_t>(unit_ - tile_begin);
    segment.end = static_cast<std::int32_t>(min(end_ - tile_begin, static_cast<std::int64_t>(key_tiles)));
    segment.number = static_cast<std::int32_t>(blockIdx.x) + number;
    const auto first = static_cast<std::int32_t>(tile_begin / per_block_);
    const auto last = static_cast<std::int32_t>((tile_begin + key_tiles - 1) / per_block_);
    segment.range = {first + number, last - first + 1, kept_candidates(per_block_, p_.rules), 0};
    unit_ = tile_begin + segment.end;
    return true;
  }

 private:
  __device__ __forceinline__ void load(std::int32_t first) {
    first_ = first;
    view_ = {0, 0, 0, 0};
    if (first + lane_ < p_.batch.batch) view_ = p_.batch.sequence(first + lane_);
    work_ = sequence_work(view_, p_.rules, p_.tile_queries);
  }

  /// Sums over the lanes in front of each.
  __device__ __forceinline__ void scan(std::int64_t units, std::int32_t tiles) {
    units_before_ = work_.units();
    tiles_before_ = work_.query_tiles;
    for (int distance = 1; distance < 32; distance *= 2) {
      const std::int64_t more_units = __shfl_up_sync(kAllLanes, units_before_, distance);
      const std::int32_t more_tiles = __shfl_up_sync(kAllLanes, tiles_before_, distance);
      if (lane_ >= distance) units_before_ += more_units, tiles_before_ += more_tiles;
    }
    units_before_ += units - work_.units();
    tiles_before_ += tiles - work_.query_tiles;
  }

  const DecodeSelectParams& p_;
  int lane_;
  std::int64_t per_block_, unit_, end_;  // units of this block still to go
  // The 32 sequences from first_ on, one per lane.
  std::int32_t first_;
  SequenceView view_;
  SequenceWork work_;
  std::int64_t units_before_;
  std::int32_t tiles_before_;
};

}  // namespace openmsa::cuda::sm90
