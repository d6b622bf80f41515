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

/// The best candidates of every `parts`-th group of 256, from group `part` on, go to `best`.
template <int kCapacity>
__device__ __forceinline__ void search_candidates(const ChoiceRow& row, int part, int parts, BestList<kCapacity>& best,
                                                  int lane) {
  constexpr int kHeld = 8, kMany = 32;  // per lane; candidates that are worth a tighter bound
  const int total = row.count * row.kept, slots = row.candidates.slots;
  for (int first = part * 32 * kHeld; first < total; first += parts * 32 * kHeld) {
    Ranked held[kHeld];
    float top = -INFINITY, second = -INFINITY;
    int wanted = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int at = first + i * 32 + lane;
      held[i] = at < total ? row.first[at / row.kept * row.stride + at % row.kept] : kNoCandidate;
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
      bound = slots <= 32 ? kth_largest(top, slots, lane) : kth_largest(top, second, slots, lane);
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const bool may_enter = held[i] != kNoCandidate && !(score_of(held[i]) < bound);
      if (__any_sync(kFullWarp, may_enter)) best.offer(may_enter, held[i]);
    }
  }
  best.keep_best();
}

/// What choose_blocks leaves in shared memory for each of up to kRows rows: kv_blocks, ascending.
template <int kRows>
struct Chosen {
  std::int32_t blocks[kRows][kMaxTopk];
  std::int32_t counts[kRows];
};

/// Scratch memory of choose_blocks: a list per warp, and the best of each part.
template <int kWarps, int kItems>
struct ChoiceScratch {
  static constexpr int kCapacity = 128;
  Ranked lists[kWarps][kCapacity];
  Ranked best[kItems][kMaxTopk];
  int sizes[kItems];
};

/// Rows [0, rows) of a block, row_of(row) tells which; all kWarps warps call it and wait for `sync` in it.
template <int kWarps, int kRows, class Scratch, class RowOf, class Sync>
__device__ __forceinline__ void choose_blocks(Chosen<kRows>& chosen, Scratch& scratch, int rows, RowOf row_of, int warp,
                                              int lane, Sync sync) {
  const int parts = max(1, kWarps / rows);
  for (int item = warp; item < rows * parts; item += kWarps) {
    const ChoiceRow row = row_of(item / parts);
    BestList<Scratch::kCapacity> best(scratch.lists[warp], row.candidates.slots, lane);
    if (row.candidates.slots > 0) search_candidates(row, item % parts, parts, best, lane);
    for (int i = lane; i < best.size(); i += 32) scratch.best[item][i] = best.at(i);
    if (lane == 0) scratch.sizes[item] = best.size();
    __syncwarp();
  }
  sync();
  for (int at = warp; at < rows; at += kWarps) {
    const Candidates candidates = row_of(at).candidates;
    std::int32_t* const to = chosen.blocks[at];
    BestList<Scratch::kCapacity> best(scratch.lists[warp], candidates.slots, lane);
    for (int part = at * parts; part < (at + 1) * parts; ++part) {
      const int size = scratch.sizes[part];
      for (int i = 0; i < size; i += 32) {
        const bool exists = i + lane < size;
        best.offer(exists, exists ? scratch.best[part][i + lane] : 0);
      }
    }
    best.keep_best();
    const bool all = candidates.slots == candidates.end - candidates.init;  // nothing was scored, perhaps
    for (int i = lane; i < candidates.init; i += 32) to[i] = i;
    if (all) {
      for (int i = lane; i < candidates.slots; i += 32) to[candidates.init + i] = candidates.init + i;
    } else {
      best.write(to + candidates.init, 1);
    }
    const std::int32_t local = candidates.init + candidates.slots;
    for (int i = lane; i < candidates.local; i += 32) to[local + i] = candidates.end + i;
    if (lane == 0) chosen.counts[at] = local + candidates.local;
  }
  sync();
}

/// Row of topk_indices from the chosen kv_blocks.
__device__ __forceinline__ void store_choice(const std::int32_t* blocks, std::int32_t count, std::int32_t topk,
                                             std::int32_t* to, std::int64_t stride, int lane) {
  for (int i = lane; i < topk; i += 32) to[i * stride] = i < count ? blocks[i] : -1;
}

}  // namespace openmsa::cuda::sm90
