// Tiles of query rows on their way into shared memory.
#pragma once

#include "cuda/common/tensor_view.h"
#include "cuda/sm80/training/tile.cuh"

namespace openmsa::cuda::sm80::training {

/// The rows of a tile of which this thread copies a chunk: row i * kRowsAtOnce + thread / kChunks of kTileRows, for the
/// heads of 2^log2_heads rows of each query.
template <class Tile, int kRows = kTileRows>
struct RowCopies {
  static constexpr int kChunks = Tile::Rows::kChunks, kRowsAtOnce = kThreads / kChunks, kCount = kRows / kRowsAtOnce;
  static_assert(kRows % kRowsAtOnce == 0);

  std::int32_t q_rows[kCount];  // -1: there is none

  /// Of the tile whose first visit is `begin`.
  __device__ __forceinline__ void find(const generic::ListBatch& work, const generic::ListItem& item, int begin,
                                       int log2_heads, int thread) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      q_rows[i] = work.visited_row(item, begin + ((i * kRowsAtOnce + thread / kChunks) >> log2_heads));
    }
  }

  /// Starts the copies; zeros where there is no row. `head`: the first of a query's.
  __device__ __forceinline__ void copy(const QueryRows& rows, std::int32_t head, int log2_heads, std::uint32_t tile,
                                       int thread) const {
    const int chunk = thread % kChunks;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = i * kRowsAtOnce + thread / kChunks, own_head = head + (row & ((1 << log2_heads) - 1));
      const auto* const from = static_cast<const typename Tile::Element*>(rows.data) +
                               (q_rows[i] < 0 ? 0 : q_rows[i] * rows.strides[0] + own_head * rows.strides[1]) +
                               chunk * 8;
      async_copy_16(tile + Tile::Rows::offset(row, chunk), from, q_rows[i] >= 0);
    }
  }
};

/// work(item, number) on the items of a list batch that a CTA takes, by a counter; all of its threads call it. `next`: in
/// shared memory.
template <class Work>
__device__ __forceinline__ void for_each_item(const generic::ListBatch& batch, std::int32_t* counter,
                                              std::int32_t& next, Work work) {
  const std::int32_t num_items = *batch.num_items;
  for (;;) {
    __syncthreads();
    if (threadIdx.x == 0) next = atomicAdd(counter, 1);
    __syncthreads();
    const std::int32_t number = next;
    if (number >= num_items) return;
    work(batch.items[number], number);
  }
}

/// Adds what the threads of a CTA hold of an item's keys to memory, in the item's turn.
template <class Add>
__device__ __forceinline__ void add_in_turn(const generic::ListBatch& work, const generic::ListItem& item,
                                            const Add& add) {
  if (threadIdx.x == 0) wait_for_turn(work.tickets + item.ticket, item.order);
  __syncthreads();
  add();
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) end_turn(work.tickets + item.ticket);
}

/// A warp's gradients of its keys, added to rows of kDim numbers, `stride` apart; of keys below `end` of the kv_block.
template <class Tile>
__device__ __forceinline__ void add_to_keys(const typename Tile::KeyGradients& d, float* sums, std::int32_t stride,
                                            std::int32_t end, int warp, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int key = warp * kWarpKeys + i * 8 + lane / 4;
    if (key >= end) continue;
    float* const to = sums + std::int64_t{key} * stride + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < Tile::kDim / 8; ++n) {
      atomicAdd(to + n * 8, d[n][2 * i]);
      atomicAdd(to + n * 8 + 1, d[n][2 * i + 1]);
    }
  }
}

}  // namespace openmsa::cuda::sm80::training
