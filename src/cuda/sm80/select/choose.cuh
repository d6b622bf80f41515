// topk_indices from what the index branch left in memory: a warp for each (query, head) row.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/generic/topk/topk.cuh"
#include "cuda/sm80/select/params.h"

namespace openmsa::cuda::sm80::select {

inline constexpr int kChooseWarps = 4;

/// A (query, head) row of a call, counted over all tiles.
struct ChosenRow {
  bool exists;
  std::int32_t tile, at;  // row of its tile
  QueryTile queries;
  Candidates rules;
  std::int32_t* to;  // its row of topk_indices

  __device__ __forceinline__ ChosenRow(const SelectParams& p, std::int64_t number) : exists(false), rules(p.rules, -1) {
    tile = static_cast<std::int32_t>(number / p.tile_rows());
    at = static_cast<std::int32_t>(number % p.tile_rows());
    if (tile >= p.num_tiles()) return;
    queries = find_tile(p.batch, p.index, tile, p.queries_per_tile);
    const int query = at / p.heads;
    exists = query < queries.count;
    rules = Candidates(p.rules, queries.position + query);
    to = p.topk_indices.row(at % p.heads, queries.q_row + query);
  }
};

/// Prompts: from the lists that the parts of a tile's keys left for each row.
template <bool kWide>
__global__ void __launch_bounds__(kChooseWarps * 32, 4)
    merge_lists_kernel(const __grid_constant__ SelectParams p, int capacity) {
  __shared__ __align__(16) Ranked memory[kChooseWarps][generic::kTopkCapacity<kWide>];
  wait_for_earlier_kernels();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, splits = p.splits();
  if (splits == 1) return;
  const std::int64_t rows = std::int64_t{p.num_tiles()} * p.tile_rows();
  for (std::int64_t number = blockIdx.x * kChooseWarps + warp; number < rows; number += gridDim.x * kChooseWarps) {
    const ChosenRow row(p, number);
    if (!row.exists) continue;
    generic::BestList<generic::kTopkCapacity<kWide>> best(memory[warp], row.rules.slots, lane);
    const Ranked* const candidates = p.partial_list(row.tile, splits, 0, row.at, capacity);
    const int count = row.rules.slots > 0 ? splits * capacity : 0;
    for (int first = 0; first < count; first += 32) {
      const Ranked one = first + lane < count ? candidates[first + lane] : kNoCandidate;
      best.offer(one != kNoCandidate, one);
    }
    best.keep_best();
    generic::write_choice(row.rules, best, p.rules.topk, row.to, p.topk_indices.strides[2], lane);
    __syncwarp();
  }
}

/// Decode: from the scores of all kv_blocks.
template <bool kWide>
__global__ void __launch_bounds__(kChooseWarps * 32, 4) choose_kernel(const __grid_constant__ SelectParams p) {
  __shared__ __align__(16) Ranked memory[kChooseWarps][generic::kTopkCapacity<kWide>];
  wait_for_earlier_kernels();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::int64_t rows = std::int64_t{p.num_tiles()} * p.tile_rows();
  for (std::int64_t number = blockIdx.x * kChooseWarps + warp; number < rows; number += gridDim.x * kChooseWarps) {
    const ChosenRow row(p, number);
    if (!row.exists) continue;
    const generic::ScoreRow<true> scores{p.score_row(row.queries, row.tile, row.at), 1, row.rules.init, row.rules.end};
    generic::choose_row<kWide>(row.rules, scores, memory[warp], p.rules.topk, row.to, p.topk_indices.strides[2], lane);
    __syncwarp();
  }
}

}  // namespace openmsa::cuda::sm80::select
