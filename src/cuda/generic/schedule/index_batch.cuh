// Prefix sums over the sequences of a batch: where each one's query tiles and kv_blocks begin.
#pragma once

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/query_range.h"
#include "cuda/common/query_tile.h"

namespace openmsa::cuda::generic {

inline constexpr int kIndexBatchThreads = 256;

/// One CTA. Sequence `batch` stands for the padding rows after the last one. longest: kv_blocks of the longest sequence
/// that is served, or null.
__global__ void __launch_bounds__(kIndexBatchThreads)
    index_batch_kernel(const BatchView batch, const BatchIndex index, int queries_per_tile, QueryRange served,
                       std::int32_t* longest) {
  using Scan = cub::BlockScan<int, kIndexBatchThreads>;
  __shared__ typename Scan::TempStorage tile_storage, block_storage;
  wait_for_earlier_kernels();
  int tiles_before = 0, blocks_before = 0, most_blocks = 0;
  for (int first = 0; first <= batch.batch; first += kIndexBatchThreads) {
    const int b = first + threadIdx.x;
    int tiles = 0, blocks = 0;
    if (b <= batch.batch) {
      const SequenceView view = batch.sequence(b);
      const bool is_served = b == batch.batch ? served.is_open() : served.has(view.seqlen_q);
      tiles = is_served ? (view.seqlen_q + queries_per_tile - 1) / queries_per_tile : 0;
      if (b == batch.batch || is_served) blocks = (view.seqlen_k + batch.block_size - 1) / batch.block_size;
      if (tiles > 0) most_blocks = max(most_blocks, blocks);
    }
    int tile_offset, block_offset, tile_sum, block_sum;
    Scan(tile_storage).ExclusiveSum(tiles, tile_offset, tile_sum);
    Scan(block_storage).ExclusiveSum(blocks, block_offset, block_sum);
    if (b <= batch.batch) {
      index.tiles[b] = tiles_before + tile_offset;
      index.blocks[b] = blocks_before + block_offset;
    }
    tiles_before += tile_sum;
    blocks_before += block_sum;
    __syncthreads();
  }
  if (threadIdx.x == 0) index.tiles[batch.batch + 1] = tiles_before;
  if (longest == nullptr) return;
  using Reduce = cub::BlockReduce<int, kIndexBatchThreads>;
  __shared__ typename Reduce::TempStorage most_storage;
  most_blocks = Reduce(most_storage).Reduce(most_blocks, [](int a, int b) { return max(a, b); });
  if (threadIdx.x == 0) *longest = most_blocks;
}

}  // namespace openmsa::cuda::generic
