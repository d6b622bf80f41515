// The running top-k of one query row, in the registers of one thread: keys descending, equal keys in order of arrival.
#pragma once

#include <climits>
#include <cstdint>

#include "cuda/common/topk_key.cuh"

namespace openmsa::cuda::generic {

template <int kCapacity>
struct TopkList {
  static constexpr std::int32_t kEmpty = INT_MIN;
  std::int32_t keys[kCapacity];
  std::int32_t blocks[kCapacity];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kCapacity; ++i) {
      keys[i] = kEmpty;
      blocks[i] = -1;
    }
  }

  /// Blocks must be offered in ascending order: a later one enters only with a higher key. Returns whether it does.
  __device__ __forceinline__ bool offer(std::int32_t key, std::int32_t block) {
    if (key <= keys[kCapacity - 1]) return false;
#pragma unroll
    for (int i = kCapacity - 1; i > 0; --i) {
      const bool moves = key > keys[i - 1], enters = key > keys[i];
      blocks[i] = moves ? blocks[i - 1] : (enters ? block : blocks[i]);
      keys[i] = moves ? keys[i - 1] : (enters ? key : keys[i]);
    }
    if (key > keys[0]) {
      keys[0] = key;
      blocks[0] = block;
    }
    return true;
  }

  /// Writes a row of candidates: the best `slots`.
  template <class CandidateRow>
  __device__ __forceinline__ void write_candidates(std::int32_t slots, const CandidateRow& row) const {
    std::int32_t count = 0;
#pragma unroll
    for (int i = 0; i < kCapacity; ++i) {
      if (i >= slots || keys[i] == kEmpty) break;
      row.put(i, rank_of_key(keys[i], blocks[i]));
      ++count;
    }
    row.clear(count, 1);
  }

  /// Writes a row of topk_indices: forced blocks and the best of the list, ascending, then -1.
  template <class Candidates>
  __device__ __forceinline__ void write(const Candidates& candidates, std::int32_t topk, std::int32_t* row,
                                        std::int64_t stride) const {
    const std::int32_t chosen = candidates.init + candidates.slots + candidates.local;
    for (std::int32_t i = 0; i < candidates.init; ++i) row[i * stride] = i;
#pragma unroll
    for (int i = 0; i < kCapacity; ++i) {
      if (i >= candidates.slots) break;
      std::int32_t rank = candidates.init;
#pragma unroll
      for (int j = 0; j < kCapacity; ++j) rank += j < candidates.slots && blocks[j] < blocks[i];
      row[rank * stride] = blocks[i];
    }
    for (std::int32_t i = 0; i < candidates.local; ++i) {
      row[(candidates.init + candidates.slots + i) * stride] = candidates.end + i;
    }
    for (std::int32_t i = chosen; i < topk; ++i) row[i * stride] = -1;
  }
};

}  // namespace openmsa::cuda::generic
