// The mass of kv_blocks in dense attention: a CTA takes the heads of one KV head of a tile of queries, 16 (query, head) rows
// for each of 8 warps, and goes twice through the keys that they see, which stream through shared memory 64 at a time:
//
//   1. lse = log2 sum_j exp2(scale_log2 q.k_j)
//   2. mass[block] = mean over the heads of a query of sum_{j in block} exp2(scale_log2 q.k_j - lse)
//
//   wait           waits for                             guards
//   async_wait     this thread's copies of a stage       (with the barrier) the stage has arrived
//   __syncthreads  all warps, once per stage             the stage before has been read and may be loaded again
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm80/attend/key_product.cuh"
#include "cuda/sm80/heuristics.h"
#include "cuda/sm80/recall/params.h"
#include "cuda/sm80/tile/load_keys.cuh"
#include "cuda/sm80/tile/softmax.cuh"

namespace openmsa::cuda::sm80::recall {

template <class Element, int kDim>
struct MassConfig {
  using Product = attend::KeyProduct<Element, Element, kDim>;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kStageKeys = 64, kStages = 4;
  struct Storage {
    alignas(kTileAlignment) char k[kStages][kStageKeys * Product::kRowBytes];
  };
  static_assert(sizeof(Storage) <= kSharedBytes);
};

/// Writes the mass of kv_block `block` of the tile `number`, from the sums of its probabilities in each of a warp's rows.
__device__ __forceinline__ void write_mass(const RecallParams& p, const QueryTile& tile, std::int32_t head,
                                           std::int32_t number, std::int32_t block, float (&sums)[2], int warp,
                                           int lane) {
  const int group = 1 << p.log2_group_size;
#pragma unroll
  for (float& x : sums) {
    x = quad_sum(x);
    for (int rows = 1; rows < min(group, 8); rows *= 2) x += __shfl_xor_sync(kFullWarp, x, 4 * rows);
  }
  if (group == 16) sums[0] += sums[1];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp * 16 + i * 8 + lane / 4, query = row >> p.log2_group_size;
    if (lane % 4 != 0 || row % group != 0 || query >= tile.count || block >= p.max_blocks) continue;
    p.mass_row(head, number, query)[block] = sums[i] / static_cast<float>(group);
  }
}

/// CTAs [tile][KV head].
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1) mass_kernel(const __grid_constant__ RecallParams p) {
  using Product = typename Config::Product;
  constexpr int kStageKeys = Config::kStageKeys, kStages = Config::kStages, kTiles = kStageKeys / 8;
  extern __shared__ __align__(kTileAlignment) char shared[];
  auto& storage = *reinterpret_cast<typename Config::Storage*>(shared);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const auto number = p.first_tile + static_cast<std::int32_t>(blockIdx.x);
  const auto head = static_cast<std::int32_t>(blockIdx.y);
  wait_for_earlier_kernels();
  if (number >= p.index.tiles[p.batch.batch + 1]) return;
  const QueryTile tile = find_tile(p.batch, p.index, number, p.tile_queries);
  const SequenceKeys keys{&p.batch, tile.sequence, tile.view.k_row, max(tile.position + tile.count, 0)};
  const std::int32_t steps = (keys.end + kStageKeys - 1) / kStageKeys;
  const auto load = [&](std::int32_t step) {
    if (step < 2 * steps) {
      load_keys<kStageKeys, Product::kRowBytes, Config::kThreads>(keys, p.k, head, step % steps * kStageKeys,
                                                                  shared_address(storage.k[step % kStages]), thread);
    }
    async_commit();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) load(i);
  attend::RegisterRows<Product, 1> q;
  int position[2];  // of this thread's rows
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = warp * 16 + i * 8 + lane / 4, query = min(row >> p.log2_group_size, tile.count - 1);
    const std::int64_t query_head = (head << p.log2_group_size) + (row & ((1 << p.log2_group_size) - 1));
    const auto* const from = static_cast<const typename Product::Element*>(p.q.data) +
                             (tile.q_row + query) * p.q.strides[0] + query_head * p.q.strides[1];
    Product::load_query(from, i, q.tiles[0], lane);
    position[i] = tile.position + query;
  }

  const int blocks_keys = p.batch.block_size;
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, lse[2];
#pragma unroll 1
  for (std::int32_t step = 0; step < 2 * steps; ++step) {
    async_wait<kStages - 2>();
    __syncthreads();
    load(step + kStages - 1);
    const bool is_second = step >= steps;
    const std::int32_t first = step % steps * kStageKeys;
    if (step == steps) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sum[i] = quad_sum(sum[i]);
        lse[i] = sum[i] == 0 ? INFINITY : top[i] + log2_approx(sum[i]);  // of rows that see nothing
        sum[i] = 0;
      }
    }
    float s[1][kTiles][4] = {};
    Product::add_scores(q, shared_address(storage.k[step % kStages]), 0, s, lane);
    float step_top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      float& x = s[0][i / 4][i % 4];
      if (first + i / 4 * 8 + lane % 4 * 2 + i % 2 > position[i / 2 % 2]) x = -INFINITY;
      step_top[i / 2 % 2] = fmaxf(step_top[i / 2 % 2], x);
    }
    float shift[2] = {lse[0], lse[1]};
    if (!is_second) {
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[i] *= raise_max(top[i], quad_max(step_top[i]) * p.scale_log2, shift[i]);
    }
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      sum[i / 2 % 2] += exp2_approx(fmaf(s[0][i / 4][i % 4], p.scale_log2, -shift[i / 2 % 2]));
    }
    if (is_second && ((first + kStageKeys) % blocks_keys == 0 || step == 2 * steps - 1)) {
      write_mass(p, tile, head, number, first / blocks_keys, sum, warp, lane);
      sum[0] = sum[1] = 0;
    }
  }
  async_wait<0>();
}

}  // namespace openmsa::cuda::sm80::recall
