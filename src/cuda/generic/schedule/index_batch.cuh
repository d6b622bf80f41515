// Prefix sums over the sequences of a batch: where each one's query tiles and kv_blocks begin.
#pragma once

#include <cub/block/block_scan.cuh>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/query_tile.h"

namespace openmsa::cuda::generic {

inline constexpr int kIndexBatchThreads = 256;

/// One CTA. Sequence `batch` stands for the padding rows after the last one.
__global__ void __launch_bounds__(kIndexBatchThreads)
    index_batch_kernel(const BatchView batch, const BatchIndex index, int queries_per_tile) {
  using Scan = cub::BlockScan<int, kIndexBatchThreads>;
  __shared__ typename Scan::TempStorage tile_storage, block_storage;
  wait_for_earlier_kernels();
  int tiles_before = 0, blocks_before = 0;
  for (int first = 0; first <= batch.batch; first += kIndexBatchThreads) {
    const int b = first + threadIdx.x;
    int tiles = 0, blocks = 0;
    if (b <= batch.batch) {
      const SequenceView view = batch.sequence(b);
      tiles = (view.seqlen_q + queries_per_tile - 1) / queries_per_tile;
      blocks = (view.seqlen_k + batch.block_size - 1) / batch.block_size;
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
}

}  // namespace openmsa::cuda::generic
