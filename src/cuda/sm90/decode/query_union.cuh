// The union of the kv_blocks that a few queries chose.
#pragma once

#include "cuda/common/math.h"
#include "cuda/sm90/decode/choose.cuh"

namespace openmsa::cuda::sm90::decode {

/// Different kv_blocks in the order of their first member, and bit i of `members` for query i of the part.
template <int kQueries>
struct QueryUnion {
  static constexpr int kEntries = kQueries * kMaxTopk;
  std::int32_t blocks[kEntries];
  std::uint32_t members[kEntries];
  std::int32_t count;
};

/// Called by all threads of the CTA; chosen must be visible to all of them, and so is the union afterwards.
template <int kThreads, int kQueries>
__device__ __forceinline__ void unite(const Chosen<kQueries>& chosen, int queries, int topk,
                                      QueryUnion<kQueries>& united, int thread) {
  if (queries == 1) {
    for (int i = thread; i < chosen.counts[0]; i += kThreads) {
      united.blocks[i] = chosen.blocks[0][i];
      united.members[i] = 1;
    }
    if (thread == 0) united.count = chosen.counts[0];
    __syncthreads();
    return;
  }
  for (int at = thread; at < queries * topk; at += kThreads) {
    const int query = at / topk, slot = at % topk;
    std::uint32_t members = 0;
    if (slot < chosen.counts[query]) {
      const std::int32_t block = chosen.blocks[query][slot];
      for (int other = 0; other < queries; ++other) {
#pragma unroll 4
        for (int i = 0; i < chosen.counts[other]; ++i) members |= chosen.blocks[other][i] == block ? 1u << other : 0;
      }
      if (__ffs(members) - 1 != query) members = 0;  // an earlier query has it
    }
    united.members[at] = members;
  }
  __syncthreads();
  if (thread < 32) {
    int size = 0;
    for (int first = 0; first < queries * topk; first += 32) {  // in place: entries only move forward
      const int at = first + thread;
      const std::uint32_t members = at < queries * topk ? united.members[at] : 0;
      const std::uint32_t votes = __ballot_sync(kFullWarp, members != 0);
      if (members != 0) {
        const int to = size + __popc(votes & ((1u << thread) - 1));
        united.blocks[to] = chosen.blocks[at / topk][at % topk];
        united.members[to] = members;
      }
      size += __popc(votes);
      __syncwarp();
    }
    if (thread == 0) united.count = size;
  }
  __syncthreads();
}

}  // namespace openmsa::cuda::sm90::decode
