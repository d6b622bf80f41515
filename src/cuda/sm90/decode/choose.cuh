// The kv_blocks of query rows, chosen by the warps of a block from the candidates that the index branch's segments
// left.
//
// A row's candidates are dealt to `parts` warps, which each find their best and rank those among the best of all.
#pragma once

#include "cuda/sm90/decode/walk.cuh"
#include "cuda/sm90/topk/best_list.cuh"

namespace openmsa::cuda::sm90 {

inline constexpr int kMaxTopk = 64;

/// A query row of one KV head, and its candidates.
struct ChoiceRow {
  Candidates rules;
  const Ranked* candidates;
  std::int32_t count;  // 0: there is no choice
};

/// Query `at` of a part.
__device__ __forceinline__ ChoiceRow choice_row(const DecodeSelectParams& p, const QueryPart& part, std::int32_t at,
                                                std::int32_t head) {
  ChoiceRow row{Candidates(p.rules, part.position + at), nullptr, 0};
  const bool has_choice = row.rules.slots > 0 && row.rules.slots < row.rules.end - row.rules.init;
  if (part.work.key_tiles == 0 || !has_choice) return row;
  const std::int32_t query = part.row - part.view.q_row + at, kept = kept_candidates(part.per_block, p.rules);
  const SegmentRange range = part.segments(p, query);
  row.candidates = p.lists.row(range, query % p.tile_queries * p.heads + head, kept);
  row.count = range.count * kept;
  return row;
}

/// What choose_blocks leaves in shared memory for each of up to kRows rows: kv_blocks, ascending.
template <int kRows>
struct Chosen {
  std::int32_t blocks[kRows][kMaxTopk];
  std::int32_t counts[kRows];
};

/// Scratch memory of choose_blocks with kWarps warps: a list of each, and the chosen kv_blocks of each row by rank.
template <int kWarps>
struct ChoiceScratch {
  static constexpr int kCapacity = 128;
  alignas(16) Ranked lists[kWarps][kCapacity];
  std::int32_t ranked[kWarps][kMaxTopk];
  int sizes[kWarps];
};

/// The order of a candidate's score: that of an integer (topk_list.cuh).
__device__ __forceinline__ std::int32_t key_of(Ranked candidate) { return static_cast<std::int32_t>(candidate >> 32); }

/// A key that at least `k` of the lanes' keys reach, k <= 32.
__device__ __forceinline__ std::int32_t kth_key(std::int32_t key, int k) {
  int greater = 0;
#pragma unroll
  for (int lane = 0; lane < 32; ++lane) greater += __shfl_sync(kFullWarp, key, lane) > key;
  return __reduce_min_sync(kFullWarp, greater < k ? key : INT_MAX);
}

/// A list with the best candidates of every `parts`-th group of 256, from group `part` on, and some others.
template <int kCapacity>
__device__ __forceinline__ int search_candidates(const ChoiceRow& row, int part, int parts, Ranked* memory, int lane) {
  constexpr int kHeld = 8, kMany = 24;  // per lane; candidates that are worth a bound
  const int slots = row.rules.slots;
  BestList<kCapacity> best(memory, slots, lane);
#pragma unroll 1
  for (int first = part * 32 * kHeld; first < row.count; first += parts * 32 * kHeld) {
    Ranked held[kHeld];
    std::uint32_t enter = 0;  // bit i: held[i]
    std::int32_t top = INT_MIN;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int at = first + i * 32 + lane;
      held[i] = at < row.count ? row.candidates[at] : kNoCandidate;
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      top = max(top, key_of(held[i]));
      enter |= held[i] > best.worst() ? 1u << i : 0;
    }
    int entering = __reduce_add_sync(kFullWarp, __popc(enter));
    if (entering > kMany && slots <= 32) {  // at least `slots` candidates reach the k-th best of the lanes' best
      const std::int32_t bound = kth_key(top, slots);
#pragma unroll
      for (int i = 0; i < kHeld; ++i) enter &= key_of(held[i]) < bound ? ~(1u << i) : ~0u;
      entering = __reduce_add_sync(kFullWarp, __popc(enter));
    }
    if (best.size() + entering > kCapacity) {  // many alike, or a long list
#pragma unroll 1
      for (int i = 0; i < kHeld; ++i) {
        const int at = first + i * 32 + lane;
        const Ranked one = at < row.count ? row.candidates[at] : kNoCandidate;
        best.offer(one != kNoCandidate, one);
      }
      best.keep_best();
      continue;
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (__any_sync(kFullWarp, enter >> i & 1)) best.append((enter >> i & 1) != 0, held[i]);
    }
    if (first + parts * 32 * kHeld < row.count) best.keep_best();  // a bound for the next group
  }
  best.close();
  return best.size();
}

/// Every candidate of list `own` that is among the best `slots` of lists [first, first + parts) goes to the place of
/// its rank.
template <class Scratch>
__device__ __forceinline__ void rank_candidates(const Scratch& scratch, int own, int first, int parts, int slots,
                                                std::int32_t* best, int lane) {
#pragma unroll 1
  for (int at = lane; at < scratch.sizes[own]; at += 32) {
    const Ranked mine = scratch.lists[own][at];
    int rank = 0;
#pragma unroll 1
    for (int part = first; part < first + parts; ++part) {
      const auto* const pairs = reinterpret_cast<const longlong2*>(scratch.lists[part]);
      const int count = (scratch.sizes[part] + 1) / 2;
#pragma unroll 4
      for (int i = 0; i < count; ++i) rank += (pairs[i].x > mine) + (pairs[i].y > mine);
    }
    if (rank < slots) best[rank] = block_of(mine);
  }
}

/// Which row a warp works for, and which part of the row's warps it is.
struct ChoiceTeam {
  int row, part, parts, first_warp;

  __device__ __forceinline__ ChoiceTeam(int rows, int warps, int warp) {
    parts = rows == 1 ? warps : warps / rows;
    row = rows == 1 ? 0 : warp / parts;
    first_warp = row * parts;
    part = warp - first_warp;
  }
};

/// kv_blocks of rows [0, rows) of a block; all its kWarps >= rows warps call it, with the row of their team.
template <int kWarps, int kRows>
__device__ __forceinline__ void choose_blocks(Chosen<kRows>& chosen, ChoiceScratch<kWarps>& scratch, int rows,
                                              const ChoiceTeam& team, const ChoiceRow& row, int warp, int lane) {
  static_assert(kRows <= kWarps);
  const bool has_row = team.row < rows;
  const Candidates& rules = row.rules;
  if (has_row) {
    const int size =
        search_candidates<ChoiceScratch<kWarps>::kCapacity>(row, team.part, team.parts, scratch.lists[warp], lane);
    if (lane == 0) scratch.sizes[warp] = size;
    if (team.part == team.parts - 1) {
      std::int32_t* const to = scratch.ranked[team.row];
      const int forced = rules.init + rules.local;
      for (int i = lane; i < forced; i += 32) to[i] = i < rules.init ? i : rules.end + i - rules.init;
      for (int i = lane; row.count == 0 && i < rules.slots; i += 32) to[forced + i] = rules.init + i;
      if (lane == 0) chosen.counts[team.row] = forced + rules.slots;
    }
  }
  __syncthreads();
  if (has_row) {
    rank_candidates(scratch, warp, team.first_warp, team.parts, rules.slots,
                    scratch.ranked[team.row] + rules.init + rules.local, lane);
  }
  __syncthreads();
  if (has_row && team.part == 0) {
    const std::int32_t* const blocks = scratch.ranked[team.row];
    for (int i = lane; i < chosen.counts[team.row]; i += 32) {
      int before = 0;
#pragma unroll 8
      for (int other = 0; other < chosen.counts[team.row]; ++other) before += blocks[other] < blocks[i];
      chosen.blocks[team.row][before] = blocks[i];
    }
  }
  __syncthreads();
}

/// A row of topk_indices: `count` kv_blocks, then -1.
__device__ __forceinline__ void store_choice(const std::int32_t* blocks, std::int32_t count, std::int32_t topk,
                                             std::int32_t* to, std::int64_t stride, int lane) {
  for (int i = lane; i < topk; i += 32) to[i * stride] = i < count ? blocks[i] : -1;
}

}  // namespace openmsa::cuda::sm90
