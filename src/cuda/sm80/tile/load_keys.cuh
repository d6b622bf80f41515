// Keys on their way into shared memory, by copies that nobody waits for yet.
#pragma once

#include "cuda/sm80/tile/keys.h"
#include "cuda/sm80/tile/shared_tile.cuh"

namespace openmsa::cuda::sm80 {

/// Where the groups of keys from `first` on begin: lane i looks up that of group i, all lanes ask together.
template <int kKeys>
class GroupRows {
 public:
  __device__ __forceinline__ GroupRows(const SequenceKeys& sequence, const KeyTensor& keys, std::int32_t head,
                                       std::int32_t first, int lane)
      : mine_(sequence.row(keys, head, first + lane % kGroups * kGroupKeys)) {}

  __device__ __forceinline__ const char* row(int group) const {
    if constexpr (kGroups == 1) return mine_;
    const auto address = reinterpret_cast<unsigned long long>(mine_);
    return reinterpret_cast<const char*>(__shfl_sync(kFullWarp, address, group));
  }

 private:
  static constexpr int kGroups = kKeys / kGroupKeys;
  static_assert(kKeys % kGroupKeys == 0);
  const char* mine_;
};

/// Keys [first, first + kKeys) of one head as rows of a tile, by kThreads threads; 16 | first. Zeros after the
/// sequence's `end`. groups.row(i): where group i of them begins.
template <int kKeys, int kRowBytes, int kThreads, class Groups>
__device__ __forceinline__ void load_groups(const Groups& groups, std::int64_t token_stride, std::int32_t end,
                                            std::int32_t first, std::uint32_t tile, int thread) {
  using Tile = SharedTile<kRowBytes>;
  constexpr int kRowsAtOnce = kThreads / Tile::kChunks, kLast = kGroupKeys - 1;
  static_assert(kThreads % Tile::kChunks == 0 && kKeys % kRowsAtOnce == 0);
  static_assert((kRowsAtOnce & (kRowsAtOnce - 1)) == 0, "Tile::below");
  static_assert(32 / Tile::kChunks <= kGroupKeys, "rows of a warp lie in one group");
  const int chunk = thread % Tile::kChunks, first_row = thread / Tile::kChunks;
  const std::int64_t in_group = (first_row & kLast) * token_stride + chunk * 16;
  const std::uint32_t to = tile + Tile::offset(first_row, chunk);
#pragma unroll
  for (int from = 0; from < kKeys; from += kRowsAtOnce) {
    const int row = from + first_row;
    const char* const group = groups.row(row / kGroupKeys) + in_group;
    const char* const from_row = from % kGroupKeys == 0 ? group : group + from % kGroupKeys * token_stride;
    async_copy_16(Tile::below(to, from), from_row, first + row < end);
  }
}

template <int kKeys, int kRowBytes, int kThreads>
__device__ __forceinline__ void load_keys(const SequenceKeys& sequence, const KeyTensor& keys, std::int32_t head,
                                          std::int32_t first, std::uint32_t tile, int thread) {
  const GroupRows<kKeys> groups(sequence, keys, head, first, thread % 32);
  load_groups<kKeys, kRowBytes, kThreads>(groups, keys.token_stride, sequence.end, first, tile, thread);
}

/// The scales of keys [first, first + kKeys) of one head; 0 after the sequence's `end`.
template <int kKeys, int kThreads>
__device__ __forceinline__ void load_scales(const SequenceKeys& sequence, const TokenScale& scale, std::int32_t head,
                                            std::int32_t first, std::uint32_t to, int thread) {
#pragma unroll
  for (int at = thread; at < kKeys; at += kThreads) {
    const std::int32_t key = first + at;
    const bool exists = key < sequence.end;
    const std::int64_t token = exists ? sequence.token(sequence.page(key), key) : 0;
    async_copy_4(to + at * 4, scale.data + head * scale.head_stride + token * scale.token_stride, exists);
  }
}

}  // namespace openmsa::cuda::sm80
