// Finding the item of a unit: a warp keeps the items of 32 sequences at a time in its lanes.
#pragma once

#include "cuda/common/math.h"
#include "cuda/sm90/decode/tile_scheduler.cuh"
#include "cuda/sm90/dense/split.h"

namespace openmsa::cuda::sm90::dense {

struct Item {
  decode::QueryPart part;  // its queries
  std::int32_t head;       // KV head
  UnitRange units;
};

/// All lanes of a warp ask together, for units that ascend.
class ItemFinder {
 public:
  __device__ __forceinline__ ItemFinder(const BatchView& batch, std::int32_t tile_queries, std::int32_t heads, int lane)
      : batch_(batch), tile_queries_(tile_queries), heads_(heads), lane_(lane) {
    std::int64_t units = 0;
    for (std::int32_t first = 0; first <= batch.batch; first += 32) {
      look_at(first);
      units += items_.units(heads);
    }
    for (int distance = 16; distance > 0; distance /= 2) units += __shfl_xor_sync(kFullWarp, units, distance);
    units_ = units;
    if (batch.batch >= 32) look_at(0);
    scan(0);
  }

  /// Units of the call.
  __device__ __forceinline__ std::int64_t units() const { return units_; }

  __device__ __forceinline__ Item find(std::int64_t unit) {
    std::uint32_t owner;
    while ((owner = __ballot_sync(kFullWarp, unit >= before_ && unit < before_ + items_.units(heads_))) == 0) {
      const std::int64_t next = __shfl_sync(kFullWarp, before_ + items_.units(heads_), 31);
      look_at(first_ + 32);
      scan(next);
    }
    const int at = __ffs(owner) - 1;
    const std::int32_t query_tiles = __shfl_sync(kFullWarp, items_.query_tiles, at);
    const std::int32_t key_tiles = __shfl_sync(kFullWarp, items_.key_tiles, at);
    const std::int64_t begin = __shfl_sync(kFullWarp, before_, at);
    const auto number = static_cast<std::int32_t>(divide(unit - begin, key_tiles));  // among those of the sequence
    const std::int32_t head = number / query_tiles, first_query = number % query_tiles * tile_queries_;
    const SequenceView view{__shfl_sync(kFullWarp, view_.q_row, at), __shfl_sync(kFullWarp, view_.seqlen_q, at),
                            __shfl_sync(kFullWarp, view_.k_row, at), __shfl_sync(kFullWarp, view_.seqlen_k, at)};
    Item item{};
    item.head = head;
    item.units.begin = begin + std::int64_t{number} * key_tiles;
    item.units.end = item.units.begin + key_tiles;
    item.part.view = view;
    item.part.sequence = first_ + at;
    item.part.row = view.q_row + first_query;
    item.part.count = min(tile_queries_, view.seqlen_q - first_query);
    item.part.position = view.seqlen_k - view.seqlen_q + first_query;
    return item;
  }

 private:
  /// The sequences from `first` on; lanes past the padding rows, which come after the last sequence, have none.
  __device__ __forceinline__ void look_at(std::int32_t first) {
    first_ = first;
    view_ = {};
    if (first + lane_ <= batch_.batch) view_ = batch_.sequence(first + lane_);
    items_ = sequence_items(view_, tile_queries_);
  }

  /// Units before each lane's sequence, given those before the first one.
  __device__ __forceinline__ void scan(std::int64_t before) {
    const std::int64_t mine = items_.units(heads_);
    std::int64_t sum = mine;
    for (int distance = 1; distance < 32; distance *= 2) {
      const std::int64_t more = __shfl_up_sync(kFullWarp, sum, distance);
      if (lane_ >= distance) sum += more;
    }
    before_ = before + sum - mine;
  }

  const BatchView& batch_;
  std::int32_t tile_queries_, heads_;
  int lane_;
  std::int64_t units_;
  std::int32_t first_;  // sequence of lane 0
  SequenceView view_;
  SequenceItems items_;
  std::int64_t before_;  // units of sequences before this lane's
};

}  // namespace openmsa::cuda::sm90::dense
