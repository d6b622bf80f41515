// From masses and selection to the two recalls of a query and KV head, a warp each. A chosen kv_block is among the n of
// highest mass where fewer than n others come before it: equal masses in the order of kv_blocks.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/launch.h"
#include "cuda/common/math.h"
#include "cuda/common/query_tile.h"
#include "cuda/generic/recall/params.h"

namespace openmsa::cuda::generic::recall {

inline constexpr int kCompareWarps = 8;

/// kv_blocks that come before `block`, whose mass is `own`, in the order of falling mass.
__device__ __forceinline__ int heavier_blocks(const float* mass, std::int32_t visible, std::int32_t block, float own,
                                              int lane) {
  int count = 0;
  for (std::int32_t b = lane; b < visible; b += 32) count += mass[b] > own || (mass[b] == own && b < block) ? 1 : 0;
  return __reduce_add_sync(kFullWarp, count);
}

__device__ __forceinline__ void write_figure(const Figure& figure, std::int32_t head, std::int32_t row, float value) {
  if (figure.data != nullptr) figure.data[head * figure.strides[0] + row * figure.strides[1]] = value;
}

/// CTAs [tile][KV head]; their warps take a query after another.
template <class Params>
__global__ void __launch_bounds__(32 * kCompareWarps) compare_kernel(const __grid_constant__ Params p) {
  wait_for_earlier_kernels();
  const auto number = p.first_tile + static_cast<std::int32_t>(blockIdx.x);
  const auto head = static_cast<std::int32_t>(blockIdx.y);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (number >= p.index.tiles[p.batch.batch + 1]) return;
  const QueryTile tile = find_tile(p.batch, p.index, number, p.tile_queries);
  for (std::int32_t query = warp; query < tile.count; query += kCompareWarps) {
    const std::int32_t row = tile.q_row + query, position = tile.position + query;
    const std::int32_t visible = position < 0 ? 0 : position / p.batch.block_size + 1;
    const float* const mass = p.mass_row(head, number, query);
    const std::int32_t* const chosen = p.topk_indices.row(head, row);
    int slots = 0, n = 0;  // of the row; of those the kv_blocks that the query sees
    for (; slots < p.topk && chosen[slots * p.topk_indices.strides[2]] >= 0; ++slots) {
      n += chosen[slots * p.topk_indices.strides[2]] < visible ? 1 : 0;
    }
    int hits = 0;
    float caught = 0;
    for (int slot = 0; slot < slots; ++slot) {
      const std::int32_t block = chosen[slot * p.topk_indices.strides[2]];
      if (block >= visible) continue;
      caught += mass[block];
      hits += heavier_blocks(mass, visible, block, mass[block], lane) < n ? 1 : 0;
    }
    if (lane != 0) continue;
    const float found = n == 0 ? 0 : static_cast<float>(hits) / static_cast<float>(n);
    write_figure(p.block_recall, head, row, visible == 0 ? 1 : found);
    write_figure(p.score_recall, head, row, visible == 0 ? 1 : caught);
  }
}

template <class Params>
void launch_compare(const Params& p, Launch launch) {
  const dim3 ctas(static_cast<unsigned int>(p.tiles), static_cast<unsigned int>(p.heads));
  cuda::launch("recall_compare", compare_kernel<Params>, {ctas, 32 * kCompareWarps, 0}, launch.stream, p);
}

}  // namespace openmsa::cuda::generic::recall
