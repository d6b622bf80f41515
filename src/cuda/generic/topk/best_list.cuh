// The best candidates of a row, kept by one warp in shared memory.
#pragma once

#include <cstdint>

#include "cuda/common/math.h"
#include "cuda/common/topk_key.cuh"

namespace openmsa::cuda::generic {

/// Candidates arrive in any order, at most one per lane at a time. Whenever kCapacity gets close, all but the best
/// `slots` are dropped; from then on only better ones than the last of those enter.
/// `memory` has room for kCapacity of them and is aligned to 16 bytes.
template <int kCapacity>
class BestList {
 public:
  __device__ __forceinline__ BestList(Ranked* memory, int slots, int lane)
      : memory_(memory), slots_(slots), lane_(lane) {}

  /// Whether a candidate has to beat `worst()`.
  __device__ __forceinline__ bool is_full() const { return worst_ != kNoCandidate; }
  __device__ __forceinline__ Ranked worst() const { return worst_; }

  __device__ __forceinline__ int size() const { return size_; }
  __device__ __forceinline__ Ranked at(int i) const { return memory_[i]; }

  /// Goes on with the `size` candidates that another list left in the same memory after keep_best().
  __device__ __forceinline__ void resume(int size) {
    size_ = size;
    if (size >= slots_) worst_ = memory_[slots_ - 1];
  }

  /// Called by all lanes; those without a candidate pass has_one = false.
  __device__ __forceinline__ void offer(bool has_one, Ranked candidate) {
    append(has_one && candidate > worst_, candidate);
    if (size_ > kCapacity - 32) keep_best();
  }

  /// Adds candidates without a look at `worst()`; there must be room.
  __device__ __forceinline__ void append(bool has_one, Ranked candidate) {
    const std::uint32_t votes = __ballot_sync(kFullWarp, has_one);
    if (has_one) memory_[size_ + __popc(votes & ((1u << lane_) - 1))] = candidate;
    size_ += __popc(votes);
  }

  /// Makes the list readable in pairs.
  __device__ __forceinline__ void close() {
    if (lane_ == 0 && size_ % 2 != 0) memory_[size_] = kNoCandidate;
    __syncwarp();
  }

  /// Leaves the best `slots`, in descending order, or as many as there are.
  __device__ __forceinline__ void keep_best() {
    close();
    if (size_ < slots_) return;
    if (size_ <= 32) {
      rank_rows<1>();
    } else if (size_ <= 64) {
      rank_rows<2>();
    } else {
      rank_rows<kCapacity / 32>();
    }
    size_ = slots_;
    worst_ = memory_[slots_ - 1];
  }

  /// Writes the kept kv_blocks in ascending order.
  __device__ __forceinline__ void write(std::int32_t* to, std::int64_t stride) const {
    for (int at = lane_; at < size_; at += 32) {
      const std::int32_t block = block_of(memory_[at]);
      int rank = 0;
#pragma unroll 4
      for (int i = 0; i < size_; ++i) rank += block_of(memory_[i]) < block;
      to[rank * stride] = block;
    }
  }

 private:
  /// Puts each of the best `slots` candidates where its rank is; a lane has up to kRows of them.
  template <int kRows>
  __device__ __forceinline__ void rank_rows() {
    Ranked mine[kRows];
    int rank[kRows] = {};
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int at = row * 32 + lane_;
      mine[row] = at < size_ ? memory_[at] : kNoCandidate;
    }
    const auto* const pairs = reinterpret_cast<const longlong2*>(memory_);
#pragma unroll 4
    for (int i = 0; i < (size_ + 1) / 2; ++i) {
      const longlong2 pair = pairs[i];
#pragma unroll
      for (int row = 0; row < kRows; ++row) rank[row] += (pair.x > mine[row]) + (pair.y > mine[row]);
    }
    __syncwarp();
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (row * 32 + lane_ < size_ && rank[row] < slots_) memory_[rank[row]] = mine[row];
    }
    __syncwarp();
  }

  Ranked* memory_;
  int slots_;
  int lane_;
  int size_ = 0;
  Ranked worst_ = kNoCandidate;
};

}  // namespace openmsa::cuda::generic
