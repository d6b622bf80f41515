// Named barriers: for some of a CTA's threads, by number. A kernel's numbers are an enum beside the table of its
// barriers.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cstdint>

namespace openmsa::cuda::sm90 {

/// Waits until `threads` threads have arrived.
template <class Barrier>
__device__ __forceinline__ void sync(Barrier barrier, int threads) {
  cutlass::arch::NamedBarrier::sync(threads, static_cast<std::uint32_t>(barrier));
}

/// Arrives without waiting.
template <class Barrier>
__device__ __forceinline__ void arrive(Barrier barrier, int threads) {
  cutlass::arch::NamedBarrier::arrive(threads, static_cast<std::uint32_t>(barrier));
}

/// The barrier of a consumer: those of all consumers follow the first one's.
template <class Barrier>
__device__ __forceinline__ Barrier of_consumer(Barrier first, int consumer) {
  return static_cast<Barrier>(static_cast<int>(first) + consumer);
}

}  // namespace openmsa::cuda::sm90
