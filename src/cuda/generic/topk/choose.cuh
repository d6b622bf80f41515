// The kv_blocks of query rows, chosen by the warps of a CTA from the candidates that the segments of their keys left.
//
// A sample of the row's candidates gives a bound that at least `slots` of them reach, and few others do. Those are
// gathered, and ranked by one warp. For a single sequence the time is a chain of latencies, so few instructions matter.
#pragma once

#include "cuda/common/math.h"
#include "cuda/common/selection.h"
#include "cuda/generic/topk/best_list.cuh"

namespace openmsa::cuda::generic {

inline constexpr int kMaxTopk = 64;

/// Candidates of a row's sample, at most, for each lane of a warp.
inline constexpr int kSampledPerLane = 5;

/// A query row of one KV head, and its candidates.
struct ChoiceRow {
  Candidates rules;
  const Ranked* candidates;  // of one segment after the other, `kept` each, the best first
  std::int32_t count;        // 0: there is no choice
  std::int32_t kept;
  int log2_depth;  // the sample takes the first 2^log2_depth of each segment

  __device__ __forceinline__ explicit ChoiceRow(const Candidates& rules)
      : rules(rules), candidates(nullptr), count(0), kept(1), log2_depth(0) {}

  __device__ __forceinline__ bool has_choice() const { return rules.slots > 0 && rules.slots < rules.end - rules.init; }

  __device__ __forceinline__ void choose_from(const Ranked* from, std::int32_t segments, std::int32_t kept_of_each) {
    candidates = from;
    kept = kept_of_each;
    count = segments * kept;
    while (segments << (log2_depth + 1) <= 32 * kSampledPerLane && 2 << log2_depth <= kept) ++log2_depth;
  }
};

/// Result of choose_blocks in shared memory for each of up to kRows rows: kv_blocks, ascending.
template <int kRows>
struct Chosen {
  std::int32_t blocks[kRows][kMaxTopk];
  std::int32_t counts[kRows];
  int gathered[kRows];  // candidates, while they are chosen from; otherwise 0
};

/// Scratch memory of choose_blocks for up to kRows rows.
template <int kRows>
struct ChoiceScratch {
  static constexpr int kCapacity = 128;  // candidates that reach the bound
  alignas(16) Ranked entries[kRows][kCapacity];
  std::int32_t ranked[kRows][kMaxTopk];  // chosen kv_blocks by rank
};

/// A key that at least `k` of the lanes' keys reach, kPerLane each.
template <int kPerLane>
__device__ __forceinline__ std::int32_t kth_key(const std::int32_t (&keys)[kPerLane], int k) {
  int greater[kPerLane] = {};
#pragma unroll(kPerLane == 1 ? 32 : 1)
  for (int lane = 0; lane < 32; ++lane) {
#pragma unroll
    for (int other = 0; other < kPerLane; ++other) {
      const std::int32_t key = __shfl_sync(kFullWarp, keys[other], lane);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) greater[i] += key > keys[i];
    }
  }
  std::int32_t least = INT_MAX;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) least = greater[i] < k ? min(least, keys[i]) : least;
  return __reduce_min_sync(kFullWarp, least);
}

/// A key that at least `slots` of the row's candidates reach, from a sample of them: segments leave their best first.
__device__ __forceinline__ std::int32_t sampled_bound(const ChoiceRow& row, int lane) {
  constexpr int kFewSlots = 24;
  std::int32_t keys[kSampledPerLane];
#pragma unroll
  for (int i = 0; i < kSampledPerLane; ++i) {
    const int number = i * 32 + (lane + 5 * i) % 32;  // no lane has the best of all segments
    const int at = (number >> row.log2_depth) * row.kept + (number & ((1 << row.log2_depth) - 1));
    keys[i] = at < row.count ? key_of(row.candidates[at]) : INT_MIN;
  }
  const int slots = row.rules.slots;
  if (slots > kFewSlots) return kth_key(keys, slots);
  std::int32_t largest[1] = {keys[0]};
#pragma unroll
  for (int i = 1; i < kSampledPerLane; ++i) largest[0] = max(largest[0], keys[i]);
  return kth_key(largest, slots);
}

/// Which row a warp works for, and which part of the row's warps it is.
struct ChoiceTeam {
  int row, part, parts;

  __device__ __forceinline__ ChoiceTeam(int rows, int warps, int warp) {
    parts = rows == 1 ? warps : warps / rows;
    row = rows == 1 ? 0 : warp / parts;
    part = warp - row * parts;
  }
};

/// Puts those of the team's candidates that reach the bound into a list, as long as there is room; kAtOnce loads of a
/// lane at a time.
template <int kAtOnce>
__device__ __forceinline__ void gather(const ChoiceRow& row, const ChoiceTeam& team, std::int32_t bound, Ranked* list,
                                       int capacity, int* size, int lane) {
#pragma unroll 1
  for (int first = team.part * 32 + lane; first < row.count; first += kAtOnce * team.parts * 32) {
    Ranked held[kAtOnce];
    std::uint32_t enter = 0;  // bit i: held[i]
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = first + i * team.parts * 32;
      held[i] = at < row.count ? row.candidates[at] : kNoCandidate;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) enter |= key_of(held[i]) >= bound && held[i] != kNoCandidate ? 1u << i : 0;
    if (enter == 0) continue;
    int at = atomicAdd(size, __popc(enter));
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if ((enter >> i & 1) == 0) continue;
      if (at < capacity) list[at] = held[i];
      ++at;
    }
  }
}

/// Those of the row's candidates that can be among its best to `entries`; all warps of the team. `size`, 0 before,
/// counts those too that have found no room.
__device__ __forceinline__ void gather_best(const ChoiceRow& row, const ChoiceTeam& team, Ranked* entries, int capacity,
                                            int* size, int lane) {
  const std::int32_t bound = sampled_bound(row, lane);
  if (row.count <= 4 * 32 * team.parts) {
    gather<4>(row, team, bound, entries, capacity, size, lane);
  } else {
    gather<16>(row, team, bound, entries, capacity, size, lane);
  }
}

/// The best candidates of a row, by one warp, where more than a list takes reach the bound: many alike.
template <int kCapacity>
__device__ __noinline__ int search_all(const Ranked* candidates, int count, int slots, Ranked* memory, int lane) {
  BestList<kCapacity> list(memory, slots, lane);
#pragma unroll 1
  for (int first = 0; first < count; first += 32) {
    const Ranked one = first + lane < count ? candidates[first + lane] : kNoCandidate;
    list.offer(one != kNoCandidate, one);
  }
  list.keep_best();
  return list.size();
}

/// The best `slots` of a row's entries to best[rank], by one warp.
__device__ __forceinline__ void rank_entries(Ranked* entries, int size, int slots, std::int32_t* best, int lane) {
  if (lane == 0 && size % 2 != 0) entries[size] = kNoCandidate;  // readable in pairs
  __syncwarp();
  const auto* const pairs = reinterpret_cast<const longlong2*>(entries);
#pragma unroll 1
  for (int at = lane; at < size; at += 32) {
    const Ranked mine = entries[at];
    int rank = 0;
#pragma unroll 4
    for (int i = 0; i < (size + 1) / 2; ++i) rank += (pairs[i].x > mine) + (pairs[i].y > mine);
    if (rank < slots) best[rank] = block_of(mine);
  }
}

/// The chosen kv_blocks of row `row`, by one warp: what is forced, and the best of its `size` entries or, without a
/// choice, all that compete. ranked: room for as many.
template <int kRows>
__device__ __forceinline__ void finish_choice(Chosen<kRows>& chosen, int row, const Candidates& rules, bool has_choice,
                                              Ranked* entries, int size, std::int32_t* ranked, int lane) {
  const int forced = rules.init + rules.local, count = forced + rules.slots;
  for (int i = lane; i < forced; i += 32) ranked[i] = i < rules.init ? i : rules.end + i - rules.init;
  if (has_choice) {
    rank_entries(entries, size, rules.slots, ranked + forced, lane);
  } else {
    for (int i = lane; i < rules.slots; i += 32) ranked[forced + i] = rules.init + i;
  }
  __syncwarp();
#pragma unroll 1
  for (int i = lane; i < count; i += 32) {  // ascending
    int before = 0;
#pragma unroll 8
    for (int other = 0; other < count; ++other) before += ranked[other] < ranked[i];
    chosen.blocks[row][before] = ranked[i];
  }
  if (lane == 0) {
    chosen.counts[row] = count;
    chosen.gathered[row] = 0;
  }
}

/// kv_blocks of rows [0, rows) of a CTA; all its warps, at least kRows, call it with the row of their team.
template <int kRows>
__device__ __forceinline__ void choose_blocks(Chosen<kRows>& chosen, ChoiceScratch<kRows>& scratch, int rows,
                                              const ChoiceTeam& team, const ChoiceRow& row, int lane) {
  constexpr int kCapacity = ChoiceScratch<kRows>::kCapacity;
  const bool has_row = team.row < rows, has_choice = has_row && row.count > 0;
  const Candidates& rules = row.rules;
  if (has_choice) gather_best(row, team, scratch.entries[team.row], kCapacity, &chosen.gathered[team.row], lane);
  __syncthreads();
  if (has_row && team.part == 0) {
    Ranked* const entries = scratch.entries[team.row];
    int size = chosen.gathered[team.row];
    if (size > kCapacity) size = search_all<kCapacity>(row.candidates, row.count, rules.slots, entries, lane);
    finish_choice(chosen, team.row, rules, has_choice, entries, size, scratch.ranked[team.row], lane);
  }
  __syncthreads();
}

/// A row of topk_indices: `count` kv_blocks, then -1.
__device__ __forceinline__ void store_choice(const std::int32_t* blocks, std::int32_t count, std::int32_t topk,
                                             std::int32_t* to, std::int64_t stride, int lane) {
  for (int i = lane; i < topk; i += 32) to[i * stride] = i < count ? blocks[i] : -1;
}

}  // namespace openmsa::cuda::generic
