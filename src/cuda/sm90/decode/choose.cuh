// The kv_blocks of query rows, chosen by the warps of a block from the candidates that the index branch's segments
// left.
//
// A row's candidates are dealt to `parts` warps, which each find their best; one warp ranks those together.
#pragma once

#include "cuda/sm90/decode/walk.cuh"
#include "cuda/sm90/topk/best_list.cuh"

namespace openmsa::cuda::sm90 {

inline constexpr int kMaxTopk = 64;

/// A query row of one KV head, and where its candidates lie.
struct ChoiceRow {
  Candidates candidates;
  const Ranked* first;  // of its query tile's first segment
  std::int32_t count;   // segments; 0: nothing competes
  std::int32_t stride;  // between them
  std::int32_t kept;    // candidates of each
};

/// Query `at` of a part.
__device__ __forceinline__ ChoiceRow choice_row(const DecodeSelectParams& p, const QueryPart& part, std::int32_t at,
                                                std::int32_t head) {
  ChoiceRow row{Candidates(p.rules, part.position + at), nullptr, 0, 0, 0};
  if (part.work.key_tiles == 0) return row;
  const std::int32_t query = part.row - part.view.q_row + at;
  const SegmentRange range = part.segments(p, query);
  row.count = range.count;
  row.kept = kept_candidates(part.per_block, p.rules);
  row.stride = p.lists.tile_rows * row.kept;
  row.first = p.lists.row(range.first, query % p.tile_queries * p.heads + head, row.kept);
  return row;
}

/// What choose_blocks leaves in shared memory for each of up to kRows rows: kv_blocks, ascending.
template <int kRows>
struct Chosen {
  std::int32_t blocks[kRows][kMaxTopk];
  std::int32_t counts[kRows];
};

/// Scratch memory of choose_blocks with kWarps warps: a list of each, and the best kv_blocks of each row.
template <int kWarps>
struct ChoiceScratch {
  static constexpr int kCapacity = 128;
  alignas(16) Ranked lists[kWarps][kCapacity];
  alignas(16) std::int32_t best[kWarps][kMaxTopk];
  int sizes[kWarps];
};

/// A list with the best candidates of every `parts`-th group of 256, from group `part` on, and some others.
template <int kCapacity>
__device__ __forceinline__ int search_candidates(const ChoiceRow& row, int part, int parts, Ranked* memory, int lane) {
  constexpr int kHeld = 8, kMany = 32;  // per lane; candidates that are worth a tighter bound
  const int total = row.count * row.kept, slots = row.candidates.slots;
  BestList<kCapacity> best(memory, slots, lane);
  for (int first = part * 32 * kHeld; first < total; first += parts * 32 * kHeld) {
    Ranked held[kHeld];
    float top = -INFINITY, second = -INFINITY;
    int wanted = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const auto at = static_cast<unsigned int>(first + i * 32 + lane), kept = static_cast<unsigned int>(row.kept);
      held[i] = at < total ? row.first[at / kept * row.stride + at % kept] : kNoCandidate;
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const float score = score_of(held[i]);  // NaN where there is none
      second = fmaxf(second, score > top ? top : score);
      top = fmaxf(top, score);
      wanted += held[i] > best.worst();
    }
    // At least `slots` candidates reach the k-th best of the lanes' best two.
    float bound = -INFINITY;
    if (__reduce_add_sync(kFullWarp, static_cast<unsigned int>(wanted)) > kMany) {
      bound = slots <= 32 ? kth_largest_counted(top, slots, lane) : kth_largest(top, second, slots, lane);
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const bool may_enter = held[i] != kNoCandidate && !(score_of(held[i]) < bound);
      if (__any_sync(kFullWarp, may_enter)) best.offer(may_enter, held[i]);
    }
  }
  if (lane == 0 && best.size() % 2 != 0) memory[best.size()] = kNoCandidate;  // read in pairs
  return best.size();
}

/// Every candidate of list `own` that is among the best `slots` of lists [first, first + parts) goes to the place of
/// its rank.
template <class Scratch>
__device__ __forceinline__ void rank_candidates(Scratch& scratch, int own, int first, int parts, int slots,
                                                std::int32_t* best, int lane) {
  for (int at = lane; at < scratch.sizes[own]; at += 32) {
    const Ranked mine = scratch.lists[own][at];
    int rank = 0;
    for (int part = first; part < first + parts; ++part) {
      const auto* const pairs = reinterpret_cast<const longlong2*>(scratch.lists[part]);
      const int count = (scratch.sizes[part] + 1) / 2;
#pragma unroll 4
      for (int i = 0; i < count; ++i) rank += (pairs[i].x > mine) + (pairs[i].y > mine);
    }
    if (rank < slots) best[rank] = block_of(mine);
  }
}

/// Chosen kv_blocks of a row in ascending order: forced ones, and `best`, or all that compete where there is room.
__device__ __forceinline__ void order_blocks(const Candidates& rules, const std::int32_t* best, std::int32_t* to,
                                             int lane) {
  const bool all = rules.slots == rules.end - rules.init;
  for (int i = lane; i < rules.init; i += 32) to[i] = i;
  for (int i = lane; i < rules.slots; i += 32) {
    int rank = all ? i : 0;
    const std::int32_t block = all ? rules.init + i : best[i];
    if (!all) {
#pragma unroll 8
      for (int other = 0; other < rules.slots; ++other) rank += best[other] < block;
    }
    to[rules.init + rank] = block;
  }
  const std::int32_t local = rules.init + rules.slots;
  for (int i = lane; i < rules.local; i += 32) to[local + i] = rules.end + i;
}

/// Rows [0, rows) of a block, row_of(row) tells which; all kWarps >= rows warps of the block call it.
template <int kWarps, int kRows, class RowOf>
__device__ __forceinline__ void choose_blocks(Chosen<kRows>& chosen, ChoiceScratch<kWarps>& scratch, int rows,
                                              RowOf row_of, int warp, int lane) {
  static_assert(kRows <= kWarps);
  const int parts = kWarps / rows, index = warp / parts;
  const bool has_row = index < rows;
  const ChoiceRow row = row_of(has_row ? index : 0);
  if (has_row) {
    const int size = row.candidates.slots == 0 ? 0
                                               : search_candidates<ChoiceScratch<kWarps>::kCapacity>(
                                                     row, warp % parts, parts, scratch.lists[warp], lane);
    if (lane == 0) scratch.sizes[warp] = size;
  }
  __syncthreads();
  if (has_row) {
    rank_candidates(scratch, warp, index * parts, parts, row.candidates.slots, scratch.best[index], lane);
  }
  __syncthreads();
  if (has_row && warp % parts == 0) {
    order_blocks(row.candidates, scratch.best[index], chosen.blocks[index], lane);
    if (lane == 0) chosen.counts[index] = row.candidates.init + row.candidates.slots + row.candidates.local;
  }
  __syncthreads();
}

/// Row of topk_indices from the chosen kv_blocks.
__device__ __forceinline__ void store_choice(const std::int32_t* blocks, std::int32_t count, std::int32_t topk,
                                             std::int32_t* to, std::int64_t stride, int lane) {
  for (int i = lane; i < topk; i += 32) to[i * stride] = i < count ? blocks[i] : -1;
}

}  // namespace openmsa::cuda::sm90
