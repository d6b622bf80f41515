// Maxima over the keys that a row sees: bounds of its gradient, which is summed in fixed point. They are kept as running
// maxima over the keys of each kv_block, so that keys after a row's own position do not count: those may be anything.
#pragma once

#include <cstdint>

#include "cuda/common/math.h"
#include "cuda/common/query_tile.h"

namespace openmsa::cuda::generic::training {

/// The keys of one kv_block, by its number among those of all sequences.
struct BlockKeys {
  std::int32_t first;  // row of the key tensors
  std::int32_t count;  // 0: there is no such kv_block

  __device__ __forceinline__ BlockKeys(const BatchView& batch, const std::int32_t* blocks, std::int32_t number)
      : first(0), count(0) {
    if (number >= blocks[batch.batch]) return;
    const std::int32_t sequence = find_sequence({blocks, 1}, batch.batch, number);
    const SequenceView view = batch.sequence(sequence);
    const std::int32_t position = (number - blocks[sequence]) * batch.block_size;
    first = view.k_row + position;
    count = min(batch.block_size, view.seqlen_k - position);
  }
};

/// x[i] = max(x[0], ..., x[i]) of numbers >= 0 in shared memory; a warp.
__device__ __forceinline__ void run_maxima(float* x, int count, int lane) {
  float before = 0;
  for (int first = 0; first < count; first += 32) {
    float maximum = first + lane < count ? fmaxf(before, x[first + lane]) : before;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      maximum = fmaxf(maximum, __shfl_up_sync(kFullWarp, maximum, distance));
    }
    if (first + lane < count) x[first + lane] = maximum;
    before = __shfl_sync(kFullWarp, maximum, 31);
  }
}

/// Where a query row stands among the keys of its sequence.
struct PlacedRow {
  SequenceView view;
  std::int32_t position;  // negative: it sees no key

  __device__ __forceinline__ PlacedRow(const BatchView& batch, std::int32_t row) {
    const IntVector begins = batch.cu_seqlens_q;
    const std::int32_t sequence = begins.data == nullptr ? 0 : find_sequence(begins, batch.batch + 1, row);
    view = batch.sequence(sequence);
    position = sequence == batch.batch ? -1 : view.seqlen_k - view.seqlen_q + row - view.q_row;
  }

  /// Row of the key tensors of the last key that it sees of a kv_block that it visits.
  __device__ __forceinline__ std::int32_t last_seen_key(std::int32_t block, std::int32_t block_size) const {
    return view.k_row + min(position, block * block_size + block_size - 1);
  }
};

}  // namespace openmsa::cuda::generic::training
