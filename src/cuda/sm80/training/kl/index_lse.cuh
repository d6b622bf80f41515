// Log-sum-exp of the student over each kv_block that a row visits: what row_stats puts together. A work item's index keys
// are loaded once; each warp takes 16 visits at a time, straight from memory into registers.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/generic/training/kl/partial_place.cuh"
#include "cuda/sm80/heuristics.h"
#include "cuda/sm80/ptx/turn.cuh"
#include "cuda/sm80/tile/softmax.cuh"
#include "cuda/sm80/training/params.h"
#include "cuda/sm80/training/rows.cuh"

namespace openmsa::cuda::sm80::training::kl {

using generic::training::kl::Params;
using generic::training::kl::partial_place;
using generic::training::kl::PartialLse;

template <class Element, int kDim>
struct IndexLseConfig {
  using Tile = TrainingTile<Element, kDim>;
  struct Storage {
    alignas(kTileAlignment) char index_k[kTileKeys * Tile::kRowBytes];
    std::int32_t next_item;
  };
  static_assert(sizeof(Storage) <= kSharedBytes);
};

/// 16 visits of an item from `first` on, by a warp.
template <class Config>
__device__ __forceinline__ void index_lse_rows(const Params& p, const generic::ListItem& item, std::uint32_t index_k,
                                               int first, std::int32_t first_row, int lane) {
  using Tile = typename Config::Tile;
  constexpr int kTiles = kTileKeys / 8;
  typename Tile::KeyOperand q;
  PartialLse* places[2];
  int last[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::int32_t row = p.work.visited_row(item, first + i * 8 + lane / 4);
    const auto* const from = static_cast<const typename Tile::Element*>(p.index_q.data) +
                             max(row, 0) * p.index_q.strides[0] + item.head * p.index_q.strides[1];
    load_row<Tile::kDim>(from, i, q, lane);
    places[i] = partial_place(p, item, row, lane);
    last[i] = min(first_row + max(row, 0), p.batch.block_size - 1);
  }
  float s[kTiles][4] = {};
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
      std::uint32_t b[4];
      Tile::Rows::load_columns(index_k, n * 8, 2 * step, lane, b);
      multiply_add<typename Tile::Element>(s[n], q[step], b[0], b[1]);
      multiply_add<typename Tile::Element>(s[n + 1], q[step], b[2], b[3]);
    }
  }
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) {
    float& x = s[i / 4][i % 4];
    if (i / 4 * 8 + lane % 4 * 2 + i % 2 > last[i / 2 % 2]) x = -INFINITY;
    top[i / 2 % 2] = fmaxf(top[i / 2 % 2], x);
  }
#pragma unroll
  for (float& x : top) x = quad_max(x) * p.index_scale_log2;
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) {
    sum[i / 2 % 2] += exp2_approx(fmaf(s[i / 4][i % 4], p.index_scale_log2, -finite_shift(top[i / 2 % 2])));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] = quad_sum(sum[i]);
    if (places[i] != nullptr) *places[i] = {top[i], sum[i]};
  }
}

template <class Config>
__global__ void __launch_bounds__(kThreads, 1)
    index_lse_kernel(const __grid_constant__ Params p, const __grid_constant__ KeyTensor index_k) {
  using Tile = typename Config::Tile;
  extern __shared__ __align__(kTileAlignment) char shared[];
  auto& storage = *reinterpret_cast<typename Config::Storage*>(shared);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  wait_for_earlier_kernels();
  for_each_item(p.work, p.next_item + generic::training::kl::kIndexLseItem, storage.next_item,
                [&](const generic::ListItem& item, std::int32_t) {
                  const std::uint32_t keys = shared_address(storage.index_k);
                  load_keys<kTileKeys, Tile::kRowBytes, kThreads>(keys_of(p.batch, item), index_k, 0,
                                                                  item.block * p.batch.block_size, keys, thread);
                  async_commit();
                  async_wait<0>();
                  __syncthreads();
                  const std::int32_t first_row = first_position(p.batch, item);
#pragma unroll 1
                  for (int first = warp * 16; first < item.count; first += kWarps * 16) {
                    index_lse_rows<Config>(p, item, keys, first, first_row, lane);
                  }
                });
}

}  // namespace openmsa::cuda::sm80::training::kl
