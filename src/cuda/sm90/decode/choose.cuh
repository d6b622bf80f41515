// The kv_blocks of a query row, chosen by the warps of a CTA from the scores that the index branch left (eq.: the topk
// best of m[i,b,r], those that are forced among them).
//
// A row is read in vectors of four scores, as many at once as a lane can have on their way: up to 8192 kv_blocks cost
// one latency of the L2 cache. Every lane puts the best that it read into a bin, and the bins give a bound that at least
// `slots` scores reach, and few others do. Lanes list what reaches it, and one warp ranks the list.
#pragma once

#include "cuda/generic/topk/choose.cuh"
#include "cuda/sm90/decode/tile_scheduler.cuh"

namespace openmsa::cuda::sm90::decode {

using generic::ChoiceScratch;
using generic::ChoiceTeam;
using generic::Chosen;
using generic::kMaxTopk;
using generic::store_choice;

/// A query row of one KV head, and the scores of the sequence's kv_blocks, of a shard those that it holds.
struct ScoreRow {
  Candidates rules;
  const float* scores;  // aligned to 16 bytes
};

/// Query `at` of a part.
__device__ __forceinline__ ScoreRow score_row(const SelectParams& p, const QueryPart& part, std::int32_t at,
                                              std::int32_t head) {
  const std::int32_t query = part.row - part.view.q_row + at;
  return {Candidates(p.rules, part.position + at).of_shard(p.rules.shard),
          p.scores.row(part.sequence, part.view, query, head, p.heads)};
}

/// Slots for which a bin for each lane is enough; for more a lane has four, one for each place in a vector.
inline constexpr int kFewSlots = 24;

/// The keys of the best scores of up to kRows rows, over the warps of their teams. choose_blocks leaves them empty.
template <int kRows>
struct ScoreBins {
  alignas(16) std::int32_t keys[kRows][4 * 32];

  static constexpr std::int32_t kEmpty = INT_MIN;
};

template <int kThreads, int kRows>
__device__ __forceinline__ void empty_choice(int (&gathered)[kRows], ScoreBins<kRows>& bins, int thread) {
  for (int i = thread; i < kRows * 4 * 32; i += kThreads) bins.keys[i / 128][i % 128] = ScoreBins<kRows>::kEmpty;
  if (thread < kRows) gathered[thread] = 0;
}

/// The k-th greatest of 32 * kPerLane keys, or that of a NaN, which all scores reach, where fewer are there.
template <int kPerLane>
__device__ __forceinline__ std::int32_t kth_of_bins(const std::int32_t* bins, int k, int lane) {
  std::int32_t mine[kPerLane];
  int greater[kPerLane] = {};
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) mine[i] = bins[i * 32 + lane];
#pragma unroll(kPerLane == 1 ? 8 : 1)
  for (int i = 0; i < 8 * kPerLane; ++i) {
    const int4 four = reinterpret_cast<const int4*>(bins)[i];
#pragma unroll
    for (int own = 0; own < kPerLane; ++own) {
      greater[own] += (four.x > mine[own]) + (four.y > mine[own]) + (four.z > mine[own]) + (four.w > mine[own]);
    }
  }
  std::int32_t least = INT_MAX;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) least = greater[i] < k ? min(least, mine[i]) : least;
  return max(__reduce_min_sync(kFullWarp, least), score_key(NAN));
}

/// What a thread of a row's team reads: vectors of four kv_blocks. The first and the last of the row may hold some that do
/// not compete; threads 0 and 1 read them beside what they have of the inner ones, which are dealt out to all.
struct ScoreShare {
  const float4* vectors;    // of the row, from that of kv_block rules.init on
  std::int32_t begin, end;  // kv_blocks that compete
  int inner_end, step;      // this thread has the inner vectors thread + 1 + i * step, below inner_end
  int thread;               // in its team
  int outer;                // the first or the last one, where it has that; or -1

  __device__ __forceinline__ ScoreShare(const ScoreRow& row, const ChoiceTeam& team, int lane)
      : vectors(reinterpret_cast<const float4*>(row.scores) + row.rules.init / 4),
        begin(row.rules.init),
        end(row.rules.end),
        inner_end((end + 3) / 4 - begin / 4 - 1),
        step(32 * team.parts),
        thread(32 * team.part + lane),
        outer(thread == 0 ? 0 : -1) {
    if (thread == 1 && inner_end > 0) outer = inner_end;
  }

  /// The scores of the outer vector, without those that do not compete.
  __device__ __forceinline__ float4 competing(const float4& of_outer) const {
    const std::int32_t block = first_block(outer);
    return {competes(block) ? of_outer.x : NAN, competes(block + 1) ? of_outer.y : NAN,
            competes(block + 2) ? of_outer.z : NAN, competes(block + 3) ? of_outer.w : NAN};
  }

  __device__ __forceinline__ std::int32_t first_block(int vector) const { return (begin / 4 + vector) * 4; }
  __device__ __forceinline__ bool competes(std::int32_t block) const { return begin <= block && block < end; }
};

/// Maxima, NaN ignored.
__device__ __forceinline__ float largest_of(const float4& a) { return fmaxf(fmaxf(a.x, a.y), fmaxf(a.z, a.w)); }
__device__ __forceinline__ float4 larger_of(const float4& a, const float4& b) {
  return {fmaxf(a.x, b.x), fmaxf(a.y, b.y), fmaxf(a.z, b.z), fmaxf(a.w, b.w)};
}

/// The scores of a share, of which up to kHeld inner vectors are held at a time.
template <int kHeld>
class ShareScores {
 public:
  /// Without values here those of a row without a choice would be alive through the loop over a CTA's parts.
  __device__ __forceinline__ ShareScores() : outer_(no_scores()) {
#pragma unroll
    for (float4& four : held_) four = no_scores();
  }

  /// Reads them all, and puts the best into the bins. The last inner vectors stay held.
  __device__ __forceinline__ void read(const ScoreShare& share, int slots, std::int32_t* bins, int lane) {
    if (share.outer >= 0) outer_ = share.vectors[share.outer];  // on its way with the others
    float4 best = no_scores();
    for (first_ = 0;; first_ += kHeld * share.step) {
      hold(share);
#pragma unroll
      for (const float4& four : held_) best = larger_of(best, four);
      if (first_ + kHeld * share.step >= share.inner_end) break;
    }
    outer_ = share.competing(outer_);
    best = larger_of(best, outer_);
    if (slots <= kFewSlots) {
      atomicMax(&bins[lane], score_key(largest_of(best)));
    } else {
      const float of_places[4] = {best.x, best.y, best.z, best.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) atomicMax(&bins[i * 32 + lane], score_key(of_places[i]));
    }
  }

  /// Adds the kv_blocks that reach the bound to `list`, as long as there is room.
  __device__ __forceinline__ void gather(const ScoreShare& share, std::int32_t bound, Ranked* list, int capacity,
                                         int* size) {
    const bool takes_nan = bound == score_key(NAN);
    const float least = score_of(rank_of_key(bound, 0));
    const auto reaches = [&](const float4& four) { return takes_nan || largest_of(four) >= least; };
    while (true) {
      std::uint32_t enter = 0;  // bit i: held_[i]; kHeld: outer_
#pragma unroll
      for (int i = 0; i < kHeld; ++i) enter |= reaches(held_[i]) ? 1u << i : 0;
      if (first_ == 0 && share.outer >= 0 && reaches(outer_)) enter |= 1u << kHeld;
#pragma unroll 1
      for (; enter != 0; enter &= enter - 1) {
        const int number = __ffs(enter) - 1, inner = share.thread + 1 + first_ + number * share.step;
        if (number < kHeld && inner >= share.inner_end) continue;
        float4 four = outer_;
#pragma unroll
        for (int i = 0; i < kHeld; ++i) four = number == i ? held_[i] : four;  // registers have no numbers
        const std::int32_t keys[4] = {score_key(four.x), score_key(four.y), score_key(four.z), score_key(four.w)};
        const std::int32_t block = share.first_block(number < kHeld ? inner : share.outer);
        const auto enters = [&](int place) { return keys[place] >= bound && share.competes(block + place); };
        int at = atomicAdd(size, enters(0) + enters(1) + enters(2) + enters(3));
#pragma unroll
        for (int place = 0; place < 4; ++place) {
          if (!enters(place)) continue;
          if (at < capacity) list[at] = rank_of_key(keys[place], block + place);
          ++at;
        }
      }
      if (first_ == 0) break;
      first_ -= kHeld * share.step;
      hold(share);
    }
  }

 private:
  static __device__ __forceinline__ float4 no_scores() { return {NAN, NAN, NAN, NAN}; }

  /// Loads the inner vectors from number thread + 1 + first_ on.
  __device__ __forceinline__ void hold(const ScoreShare& share) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int vector = share.thread + 1 + first_ + i * share.step;
      held_[i] = vector < share.inner_end ? share.vectors[vector] : no_scores();
    }
  }

  int first_ = 0;
  float4 outer_;
  float4 held_[kHeld];
};

/// The best candidates of a row, by one warp, where more than a list takes reach the bound: many alike.
template <int kCapacity>
__device__ __noinline__ int search_scores(const float* scores, std::int32_t begin, std::int32_t end, int slots,
                                          Ranked* memory, int lane) {
  constexpr int kAtOnce = 8;
  generic::BestList<kCapacity> list(memory, slots, lane);
#pragma unroll 1
  for (; begin < end; begin += 32 * kAtOnce) {
    float some[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) some[i] = begin + i * 32 + lane < end ? scores[begin + i * 32 + lane] : NAN;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const std::int32_t block = begin + i * 32 + lane;
      list.offer(block < end, rank_of(some[i], block));
    }
  }
  list.keep_best();
  return list.size();
}

/// Lists the kv_blocks of rows [0, rows) that can be among their best, and has one warp of each row call
/// finish(row, entries, size); 0 entries where has_choice is false. `gathered` is 0 before; finish clears it.
template <int kHeld, int kRows, class Finish>
__device__ __forceinline__ void list_best(int (&gathered)[kRows], ScoreBins<kRows>& bins, ChoiceScratch<kRows>& scratch,
                                          int rows, const ChoiceTeam& team, const ScoreRow& row,
                                          const ScoreShare& share, bool has_choice, int lane, Finish finish) {
  constexpr int kCapacity = ChoiceScratch<kRows>::kCapacity;
  const bool has_row = team.row < rows;
  has_choice = has_choice && has_row;
  const int at = has_row ? team.row : 0, slots = row.rules.slots;
  std::int32_t* const keys = bins.keys[at];
  Ranked* const entries = scratch.entries[at];
  ShareScores<kHeld> scores;
  if (has_choice) scores.read(share, slots, keys, lane);
  __syncthreads();
  if (has_choice) {
    const std::int32_t bound =
        slots <= kFewSlots ? kth_of_bins<1>(keys, slots, lane) : kth_of_bins<4>(keys, slots, lane);
    scores.gather(share, bound, entries, kCapacity, &gathered[at]);
  }
  __syncthreads();
  if (has_row && team.part == 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) keys[i * 32 + lane] = ScoreBins<kRows>::kEmpty;
    int size = gathered[at];
    if (size > kCapacity) {
      size = search_scores<kCapacity>(row.scores, row.rules.init, row.rules.end, slots, entries, lane);
    }
    finish(at, entries, size);
  }
  __syncthreads();
}

inline constexpr int kShortShare = 2, kLongShare = 13;  // five warps hold 1280 kv_blocks, or 8320 at a time

/// kv_blocks of rows [0, rows) of a CTA; all its warps, at least kRows, call it with the row of their team and their share
/// of it. `end`: of the kv_blocks that compete in any of the rows.
template <int kRows>
__device__ __forceinline__ void choose_blocks(Chosen<kRows>& chosen, ScoreBins<kRows>& bins,
                                              ChoiceScratch<kRows>& scratch, int rows, const ChoiceTeam& team,
                                              const ScoreRow& row, const ScoreShare& share, std::int32_t end,
                                              int lane) {
  const bool has_choice = row.rules.need_scores(false);
  const auto finish = [&](int at, Ranked* entries, int size) {
    generic::finish_choice(chosen, at, row.rules, has_choice, entries, size, scratch.ranked[at], lane);
  };
  if (end <= kShortShare * 4 * 32 * team.parts) {
    list_best<kShortShare>(chosen.gathered, bins, scratch, rows, team, row, share, has_choice, lane, finish);
  } else {
    list_best<kLongShare>(chosen.gathered, bins, scratch, rows, team, row, share, has_choice, lane, finish);
  }
}

}  // namespace openmsa::cuda::sm90::decode
