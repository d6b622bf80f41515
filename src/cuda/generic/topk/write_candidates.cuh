// Rows of `candidates`: the best of what the index branch left for a row, with their scores, as a shard hands them over.
#pragma once

#include "cuda/common/shard.h"
#include "cuda/generic/topk/choose.cuh"

namespace openmsa::cuda::generic {

/// The same candidate, with the kv_block's number in the sequence in place of that in the shard.
__device__ __forceinline__ Ranked in_sequence(Ranked own, const Shard& shard) {
  return rank_of_key(key_of(own), shard.block(block_of(own)));
}

/// Where a row goes.
struct CandidateRow {
  Ranked* to;  // slot 0; nullptr: there is no such row
  std::int64_t stride;
  std::int32_t topk;
  Shard shard;

  __device__ __forceinline__ void put(int slot, Ranked own) const { to[slot * stride] = in_sequence(own, shard); }
  /// Slots [first, topk), every `step`-th.
  __device__ __forceinline__ void clear(int first, int step) const {
    for (int slot = first; slot < topk; slot += step) to[slot * stride] = kNoCandidate;
  }
};

/// The best `slots` of a row's entries in descending order, kNoCandidate after them; by one warp.
__device__ __forceinline__ void put_best(const CandidateRow& out, const Ranked* entries, int size, int slots,
                                         int lane) {
  __syncwarp();
#pragma unroll 1
  for (int at = lane; at < size; at += 32) {
    const Ranked mine = entries[at];
    int rank = 0;
#pragma unroll 4
    for (int i = 0; i < size; ++i) rank += entries[i] > mine;
    if (rank < slots) out.put(rank, mine);
  }
  out.clear(min(size, slots) + lane, 32);
  __syncwarp();
}

/// The best `row.rules.slots` of each row's candidates. As choose_blocks: for the rows of a CTA, by all its warps.
/// `gathered` is 0 before and after.
template <int kRows>
__device__ __forceinline__ void write_candidates(int (&gathered)[kRows], ChoiceScratch<kRows>& scratch,
                                                 const ChoiceTeam& team, const ChoiceRow& row, const CandidateRow& out,
                                                 int lane) {
  constexpr int kCapacity = ChoiceScratch<kRows>::kCapacity;
  if (out.to != nullptr && row.count > 0) {
    gather_best(row, team, scratch.entries[team.row], kCapacity, &gathered[team.row], lane);
  }
  __syncthreads();
  if (out.to != nullptr && team.part == 0) {
    Ranked* const entries = scratch.entries[team.row];
    const int slots = row.rules.slots;
    int size = gathered[team.row];
    if (size > kCapacity) size = search_all<kCapacity>(row.candidates, row.count, slots, entries, lane);
    put_best(out, entries, size, slots, lane);
    if (lane == 0) gathered[team.row] = 0;
  }
  __syncthreads();
}

}  // namespace openmsa::cuda::generic
