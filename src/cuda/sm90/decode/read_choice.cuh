// Chosen kv_blocks from topk_indices, and to them.
#pragma once

#include "cuda/common/math.h"
#include "cuda/sm90/decode/choose.cuh"

namespace openmsa::cuda::sm90::decode {

/// Chosen kv_blocks of the part's queries, from topk_indices: those of their valid prefix that are in the shard.
template <int kWarps, int kQueries>
__device__ __forceinline__ void read_choice(const SelectParams& p, const QueryPart& part, std::int32_t head,
                                            Chosen<kQueries>& chosen, int warp, int lane) {
  for (int query = warp; query < part.count; query += kWarps) {
    const std::int32_t* const from = p.topk_indices.row(head, part.row + query);
    int count = 0;
    for (int first = 0; first < p.rules.topk; first += 32) {
      const std::int32_t block = first + lane < p.rules.topk ? from[(first + lane) * p.topk_indices.strides[2]] : -1;
      const int valid = __ffs(~__ballot_sync(kFullWarp, block >= 0)) - 1;
      const int taken = valid < 0 ? 32 : valid;
      const bool is_held = lane < taken && p.rules.shard.holds(block);
      const std::uint32_t held = __ballot_sync(kFullWarp, is_held);
      if (is_held) chosen.blocks[query][count + __popc(held & ((1u << lane) - 1))] = block;
      count += __popc(held);
      if (taken < 32) break;
    }
    if (lane == 0) chosen.counts[query] = count;
  }
  __syncthreads();
}

/// topk_indices of the part, where they are wanted, by one warp.
template <class Config>
__device__ __forceinline__ void store_part(const SelectParams& p, const typename Config::Storage& storage,
                                           const QueryPart& part, std::int32_t head, int lane) {
  if (p.scores.data == nullptr || p.topk_indices.data == nullptr) return;
  for (int query = 0; query < part.count; ++query) {
    std::int32_t* const to = p.topk_indices.row(head, part.row + query);
    store_choice(storage.chosen.blocks[query], storage.chosen.counts[query], p.rules.topk, to,
                 p.topk_indices.strides[2], lane);
  }
}

}  // namespace openmsa::cuda::sm90::decode
