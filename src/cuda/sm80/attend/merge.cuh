// Partial results of a query put together: those that kv_outer left in its slots, and after them that of q_outer.
//
//   o = sum_i 2^(lse_i - lse) o_i,   lse = log2 sum_i 2^lse_i      i over slots, in their order
//
// Bound by memory: a thread has 16 bytes of a row and several slots of it under way.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm80/attend/params.h"
#include "cuda/sm80/attend/partial_row.cuh"
#include "cuda/sm80/tile/softmax.cuh"

namespace openmsa::cuda::sm80::attend {

template <class Product>
struct MergeConfig {
  static constexpr int kThreads = 256;
  static constexpr int kRows = kThreads / PartialRow<Product>::kChunks;  // (query, head) rows of a CTA
  static constexpr int kCtasPerTile = kPromptRows / kRows;
};

/// CTAs [tile][rows of it].
template <class Product>
__global__ void __launch_bounds__(MergeConfig<Product>::kThreads)
    merge_kernel(const __grid_constant__ PromptBatches batches) {
  using Partial = PartialRow<Product>;
  using Config = MergeConfig<Product>;
  const PromptParams& p = batches.of[blockIdx.y];
  const ScheduleBatch& work = p.work;
  const std::int32_t number = blockIdx.x / Config::kCtasPerTile, log2_group = p.log2_group_size;
  const int chunk = threadIdx.x % Partial::kChunks, lane = threadIdx.x % 32;
  const int tile_row = blockIdx.x % Config::kCtasPerTile * Config::kRows + threadIdx.x / Partial::kChunks;
  wait_for_earlier_kernels();
  if (work.first_tile + number >= p.index.tiles[p.batch.batch + 1]) return;
  const QueryTile tile = find_tile(p.batch, p.index, work.first_tile + number, work.tile_queries);
  const std::int32_t query = tile_row >> log2_group, head = tile_row & ((1 << log2_group) - 1);
  const bool exists = query < tile.count;
  const std::int32_t of_kv_outer = exists ? work.slot_counts[number * work.tile_queries + query] : 0;
  const std::int32_t slots = of_kv_outer == 0 ? 0 : min(of_kv_outer + 1, work.slots);  // 0: q_outer has written o
  const auto row = [&](std::int32_t slot) { return partial_row(work, number, slot, query, head, log2_group); };

  float top = -INFINITY;
#pragma unroll 8
  for (std::int32_t slot = 0; slot < slots; ++slot) top = fmaxf(top, work.partial_lse[row(slot)]);
  const float shift = finite_shift(top);
  float total = 0, o[8] = {};
#pragma unroll 8
  for (std::int32_t slot = 0; slot < slots; ++slot) {
    const std::int32_t at = row(slot);
    const float share = exp2_approx(work.partial_lse[at] - shift);
    total += share;
    Partial::add(Partial::chunk_of(work.partial_o, at, chunk), share, o);
  }
  const OutputRows& out = p.tensors.out;
  const std::int64_t q_row = tile.q_row + query, query_head = (work.head << log2_group) + head;
  auto* const to =
      static_cast<typename Product::Element*>(out.o) + q_row * out.o_strides[0] + query_head * out.o_strides[1];
  Partial::store_output(o, total == 0 ? 0 : 1 / total, to, chunk, slots > 0, lane);
  if (out.lse != nullptr && slots > 0 && chunk == 0) {
    out.lse[q_row * out.lse_strides[0] + query_head * out.lse_strides[1]] =
        total == 0 ? -INFINITY : (top + log2f(total)) * kLn2;
  }
}

}  // namespace openmsa::cuda::sm80::attend
