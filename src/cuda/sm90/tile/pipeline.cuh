// Shared-memory barriers and a ring of stages between one producer and the consumer warpgroups.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cstdint>
#include <cute/arch/util.hpp>

#include "cuda/sm90/ptx/compiler.cuh"
#include "cuda/sm90/tile/stamps.cuh"

namespace openmsa::cuda::sm90 {

using FullBarrier = cutlass::arch::ClusterTransactionBarrier;  // completes when its bytes have arrived
using EmptyBarrier = cutlass::arch::ClusterBarrier;            // completes when its arrivals have

/// Where a thread is in a ring of kStages: the next stage, and the phase that its barriers are in.
template <int kStages>
struct PipelineState {
  int stage = 0;
  std::uint32_t phase = 0;
#ifdef OPENMSA_STAMPS
  unsigned stamp_n = 0;
#endif

  __device__ __forceinline__ void advance(int steps = 1) {
    stage += steps;
    if (stage >= kStages) {
      stage -= kStages;
      phase ^= 1;
    }
  }
  __device__ __forceinline__ PipelineState after(int steps) const {
    PipelineState result = *this;
    result.advance(steps);
    return result;
  }
};

/// Initialises the barriers of a ring; one thread calls it. `loads`: how often a stage's bytes are announced.
template <int kStages>
__device__ __forceinline__ void init_ring(std::uint64_t (&full)[kStages], std::uint64_t (&empty)[kStages],
                                          int consumers, int loads = 1) {
  for (int i = 0; i < kStages; ++i) {
    FullBarrier::init(&full[i], loads);
    EmptyBarrier::init(&empty[i], consumers);
  }
}

/// What storage has in place of what it does not need.
struct Nothing {};

/// Dynamic shared memory on the 1024-byte boundary that the 128-byte swizzle wants. Launch with sizeof + 1024 bytes.
template <class Storage>
__device__ __forceinline__ Storage& shared_storage(char* raw) {
  return shared_at<Storage>((cute::cast_smem_ptr_to_uint(raw) + 1023) / 1024 * 1024);
}

/// The start of a kernel with barriers: one thread runs `init`, then all threads see what it initialised.
template <class Init>
__device__ __forceinline__ void init_barriers(Init init) {
  if (threadIdx.x == 0) {
    init();
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
}

}  // namespace openmsa::cuda::sm90
