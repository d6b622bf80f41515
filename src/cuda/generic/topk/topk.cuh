// Exp-free top-k of a score matrix: a warp per row, each score read once from memory.
//
// A row passes through registers in tiles of 1024. The k-th best of the lanes' maxima, or the worst of the k best so
// far, bounds what can still be chosen from below; the few scores of a tile that reach the bound go to a list in
// shared memory, where they are ranked with the best of the tiles before.
#pragma once

#include "cuda/common/find_sequence.cuh"
#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/generic/topk/best_list.cuh"
#include "cuda/generic/topk/params.h"
#include "cuda/generic/topk/score_tile.cuh"

namespace openmsa::cuda::generic {

inline constexpr int kTopkWarps = 4;

/// Bit i: scores[i] is not below `bound`, or above it where `strictly`. A NaN may be chosen too: its bit is set.
__device__ __forceinline__ std::uint32_t reaching(const float (&scores)[kLaneScores], float bound, bool strictly) {
  std::uint32_t bits = 0;
  if (strictly) {
#pragma unroll
    for (int i = 0; i < kLaneScores; ++i) bits |= !(scores[i] <= bound) ? 1u << i : 0;
  } else {
#pragma unroll
    for (int i = 0; i < kLaneScores; ++i) bits |= !(scores[i] < bound) ? 1u << i : 0;
  }
  return bits;
}

template <bool kWide, class List, class Row>
__device__ __forceinline__ void search_tile(List& best, const Row& row, std::int32_t first, int slots, int lane) {
  constexpr int kMany = 32;  // candidates that are worth a tighter bound
  float scores[kLaneScores];
  row.load(first, lane, scores);
  std::uint32_t candidates = row.competing(first, lane);
  // Earlier tiles hold lower kv_blocks: they win ties.
  if (best.is_full()) candidates &= reaching(scores, score_of(best.worst()), true);
  if (__reduce_add_sync(kFullWarp, static_cast<unsigned int>(__popc(candidates))) > kMany) {
    candidates &= reaching(scores, lower_bound<kWide>(scores, slots, lane), false);
  }
  while (__any_sync(kFullWarp, candidates != 0)) {
    const bool has_one = candidates != 0;
    const std::int32_t block = first + Row::column(has_one ? __ffs(candidates) - 1 : 0, lane);
    // Registers cannot be indexed by a variable; the score is still in the L1 cache.
    best.offer(has_one, has_one ? rank_of(row.at(block), block) : 0);
    candidates &= candidates - 1;
  }
  best.keep_best();
}

/// Writes a row of topk_indices: forced kv_blocks and those of a list, ascending, then -1.
template <class List>
__device__ __forceinline__ void write_choice(const Candidates& rules, const List& best, std::int32_t topk,
                                             std::int32_t* to, std::int64_t stride, int lane) {
  const std::int32_t local = rules.init + rules.slots;
  for (std::int32_t i = lane; i < rules.init; i += 32) to[i * stride] = i;
  best.write(to + rules.init * stride, stride);
  for (std::int32_t i = lane; i < rules.local; i += 32) to[(local + i) * stride] = rules.end + i;
  for (std::int32_t i = local + rules.local + lane; i < topk; i += 32) to[i * stride] = -1;
}

/// Candidates of a list in shared memory, beside the best ones. kWide: topk above 16.
template <bool kWide>
inline constexpr int kTopkCapacity = kWide ? 128 : 64;

/// The choice of one row by one warp. scores.begin and scores.end are rules.init and rules.end.
template <bool kWide, class Row>
__device__ __forceinline__ void choose_row(const Candidates& rules, const Row& scores, Ranked* memory,
                                           std::int32_t topk, std::int32_t* to, std::int64_t stride, int lane) {
  BestList<kTopkCapacity<kWide>> best(memory, rules.slots, lane);
  const std::int32_t end = rules.slots > 0 ? rules.end : 0;
  for (std::int32_t first = rules.init / kTileScores * kTileScores; first < end; first += kTileScores) {
    search_tile<kWide>(best, scores, first, rules.slots, lane);
  }
  write_choice(rules, best, topk, to, stride, lane);
}

template <bool kWide, bool kContiguous>
__global__ void __launch_bounds__(kTopkWarps * 32, kWide ? 5 : 6) topk_kernel(const TopkParams p) {
  __shared__ __align__(16) Ranked memory[kTopkWarps][kTopkCapacity<kWide>];
  wait_for_earlier_kernels();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto query = static_cast<std::int32_t>(blockIdx.x * kTopkWarps + warp), head = static_cast<int>(blockIdx.y);
  if (query >= p.batch.total_q) return;

  const IntVector offsets = p.batch.cu_seqlens_q;
  const std::int32_t sequence =
      offsets.data == nullptr ? 0 : find_sequence_together(offsets, p.batch.batch + 1, query, lane);
  const Candidates rules(p.rules, p.batch.position_in(sequence, query));
  const ScoreRow<kContiguous> scores{p.block_scores.row(head, query), p.block_scores.strides[2], rules.init, rules.end};
  choose_row<kWide>(rules, scores, memory[warp], p.rules.topk, p.topk_indices.row(head, query),
                    p.topk_indices.strides[2], lane);
}

}  // namespace openmsa::cuda::generic
