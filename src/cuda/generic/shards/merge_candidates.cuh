// The selection of whole sequences from the candidates of all their shards: a warp per query row and KV head.
#pragma once

#include "cuda/common/find_sequence.cuh"
#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/generic/shards/params.h"
#include "cuda/generic/topk/best_list.cuh"

namespace openmsa::cuda::generic {

inline constexpr int kMergeWarps = 4;

/// The best `slots` of a row's candidates: at most as many of each shard, in whatever order they come.
template <class List>
__device__ __forceinline__ void offer_all(const MergeCandidatesParams& p, std::int32_t head, std::int32_t query,
                                          int slots, List& best, int lane) {
  const Ranked* const row = p.candidates.row(head, query);
  for (int first = 0; first < p.shards * slots; first += 32) {
    const int number = first + lane, shard = number / slots, slot = number - shard * slots;
    const bool exists = shard < p.shards;
    const Ranked one = exists ? row[shard * p.shard_stride + slot * p.candidates.strides[2]] : kNoCandidate;
    best.offer(one != kNoCandidate, one);
  }
  best.keep_best();
}

/// CTAs [rows / kMergeWarps][KV head].
__global__ void __launch_bounds__(kMergeWarps * 32)
    merge_candidates_kernel(const __grid_constant__ MergeCandidatesParams p) {
  constexpr int kCapacity = 128;  // twice topk, at most
  __shared__ __align__(16) Ranked memory[kMergeWarps][kCapacity];
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto query = static_cast<std::int32_t>(blockIdx.x * kMergeWarps + warp);
  const auto head = static_cast<std::int32_t>(blockIdx.y);
  if (query >= p.batch.total_q) return;

  const IntVector offsets = p.batch.cu_seqlens_q;
  const std::int32_t sequence =
      offsets.data == nullptr ? 0 : find_sequence_together(offsets, p.batch.batch + 1, query, lane);
  const Candidates rules(p.rules, p.batch.position_in(sequence, query));
  BestList<kCapacity> best(memory[warp], rules.slots, lane);
  if (rules.slots > 0) offer_all(p, head, query, rules.slots, best, lane);

  std::int32_t* const to = p.topk_indices.row(head, query);
  const std::int64_t stride = p.topk_indices.strides[2];
  const std::int32_t local = rules.init + best.size(), count = local + rules.local;
  for (std::int32_t i = lane; i < rules.init; i += 32) to[i * stride] = i;
  best.write(to + rules.init * stride, stride);
  for (std::int32_t i = lane; i < rules.local; i += 32) to[(local + i) * stride] = rules.end + i;
  for (std::int32_t i = count + lane; i < p.rules.topk; i += 32) to[i * stride] = -1;
}

}  // namespace openmsa::cuda::generic
