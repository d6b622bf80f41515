// topk_indices or candidates where the keys of a tile of queries were cut into parts, from the list that each part left
// for a row.
//
// Few parts: a thread for each row, which offers one list to the other. Many: one warp or several for each row, which
// choose like those of a decode step (generic/topk/choose.cuh).
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/generic/topk/choose.cuh"
#include "cuda/sm90/prefill/select/epilogue.cuh"
#include "cuda/sm90/prefill/select/params.h"

namespace openmsa::cuda::sm90::prefill {

inline constexpr int kMergeWarps = 8;
inline constexpr int kMergeCtasPerSm = 4;
inline constexpr int kFewSplits = 4;

/// A (query, head) row of a call, and its lists.
struct MergedRow {
  bool exists;
  Candidates rules;
  const Ranked* lists;  // [splits][capacity], each the best first
  std::int32_t head, row;

  __device__ __forceinline__ MergedRow(const SelectParams& p, int number, int splits, int capacity)
      : rules(p.rules, -1) {
    const int rows = p.queries_per_tile * p.heads, tile_number = number / rows, at = number % rows;
    exists = tile_number < p.num_tiles();
    if (!exists) return;
    const QueryTile tile = find_tile(p.batch, p.index, tile_number, p.queries_per_tile);
    const int query = at / p.heads;
    exists = query < tile.count;
    rules = Candidates(p.rules, tile.position + query).of_shard(p.rules.shard);
    lists = p.partial_lists + partial_list(p, tile_number, splits, 0, at, capacity);
    head = at % p.heads;
    row = tile.q_row + query;
  }
};

template <int kCapacity>
__device__ __forceinline__ void merge_by_thread(const SelectParams& p, int number, int splits) {
  const MergedRow row(p, number, splits, kCapacity);
  if (!row.exists) return;
  generic::TopkList<kCapacity> list;
#pragma unroll
  for (int i = 0; i < kCapacity; ++i) {
    const Ranked one = row.lists[i];
    list.keys[i] = one == kNoCandidate ? list.kEmpty : key_of(one);
    list.blocks[i] = block_of(one);
  }
#pragma unroll 1
  for (int split = 1; split < splits; ++split) {
#pragma unroll 1
    for (int i = 0; i < kCapacity; ++i) {
      const Ranked one = row.lists[split * kCapacity + i];
      if (one == kNoCandidate || !list.offer(key_of(one), block_of(one))) break;  // those after it are no better
    }
  }
  write_list(p, list, row.rules, row.head, row.row);
}

/// merge_lists for `rows` rows from `first` on, as many as a CTA has teams.
template <int kCapacity>
__device__ __forceinline__ void merge_by_teams(const SelectParams& p, generic::Chosen<kMergeWarps>& chosen,
                                               generic::ChoiceScratch<kMergeWarps>& scratch, int first, int rows,
                                               int splits, int warp, int lane) {
  const generic::ChoiceTeam team(rows, kMergeWarps, warp);
  const MergedRow row(p, first + team.row, splits, kCapacity);
  generic::ChoiceRow choice(row.rules);
  const bool wants_candidates = p.candidates.data != nullptr;
  if (row.exists && row.rules.need_scores(wants_candidates)) choice.choose_from(row.lists, splits, kCapacity);
  if (wants_candidates) {
    const generic::CandidateRow out{row.exists ? p.candidates.row(row.head, row.row) : nullptr, p.candidates.strides[2],
                                    p.rules.topk, p.rules.shard};
    return generic::write_candidates(chosen.gathered, scratch, team, choice, out, lane);
  }
  generic::choose_blocks(chosen, scratch, rows, team, choice, lane);
  if (!row.exists || team.part != 0) return;
  generic::store_choice(chosen.blocks[team.row], chosen.counts[team.row], p.rules.topk,
                        p.topk_indices.row(row.head, row.row), p.topk_indices.strides[2], lane);
}

/// Warps of a row's team: a warp for some 16 lists.
__device__ __forceinline__ int team_warps(int splits) {
  int warps = 1;
  while (warps < kMergeWarps && 16 * warps < splits) warps *= 2;
  return warps;
}

template <int kCapacity>
__global__ void __launch_bounds__(kMergeWarps * 32) merge_lists_kernel(const __grid_constant__ SelectParams p) {
  __shared__ generic::Chosen<kMergeWarps> chosen;
  __shared__ generic::ChoiceScratch<kMergeWarps> scratch;
  if (threadIdx.x < kMergeWarps) chosen.gathered[threadIdx.x] = 0;
  __syncthreads();
  wait_for_earlier_kernels();
  const int splits = p.splits(), all_rows = p.num_tiles() * p.queries_per_tile * p.heads;
  if (splits == 1) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rows = splits <= kFewSplits ? kMergeWarps * 32 : kMergeWarps / team_warps(splits);  // of this CTA at once
  for (int first = blockIdx.x * rows; first < all_rows; first += gridDim.x * rows) {
    if (splits <= kFewSplits) {
      merge_by_thread<kCapacity>(p, first + threadIdx.x, splits);
    } else {
      merge_by_teams<kCapacity>(p, chosen, scratch, first, rows, splits, warp, lane);
    }
  }
}

}  // namespace openmsa::cuda::sm90::prefill
