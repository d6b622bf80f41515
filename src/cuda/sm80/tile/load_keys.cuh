// Keys on their way into shared memory, by copies that nobody waits for yet.
#pragma once

#include "cuda/sm80/tile/keys.h"
#include "cuda/sm80/tile/shared_tile.cuh"

namespace openmsa::cuda::sm80 {

/// Keys [first, first + kKeys) of one head as rows of a tile, by kThreads threads; 16 | first. Zeros after the
/// sequence's `end`.
template <int kKeys, int kRowBytes, int kThreads>
__device__ __forceinline__ void load_keys(const SequenceKeys& sequence, const KeyTensor& keys, std::int32_t head,
                                          std::int32_t first, std::uint32_t tile, int thread) {
  using Tile = SharedTile<kRowBytes>;
  constexpr int kRowsAtOnce = kThreads / Tile::kChunks;
  static_assert(kThreads % Tile::kChunks == 0 && (kRowsAtOnce >= kKeys || kKeys % kRowsAtOnce == 0));
  const int chunk = thread % Tile::kChunks, first_row = thread / Tile::kChunks;
  std::int32_t page = 0;
#pragma unroll
  for (int from = 0; from < kKeys; from += kRowsAtOnce) {
    const int row = from + first_row;
    if (kRowsAtOnce > kKeys && row >= kKeys) break;
    const std::int32_t key = first + row;
    const bool exists = key < sequence.end;
    if (from == 0 || kRowsAtOnce >= kGroupKeys || from % kGroupKeys == 0) page = sequence.page(key);
    const char* const row_data = sequence.row(keys, head, page, exists ? key : 0);
    async_copy_16(tile + Tile::offset(row, chunk), row_data + chunk * 16, exists);
  }
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
