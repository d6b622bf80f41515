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

/// Waits as sync() does; whether any of the threads says yes (PTX ISA, "Parallel Synchronization and Communication
/// Instructions": barrier.red).
template <class Barrier>
__device__ __forceinline__ bool sync_or(Barrier barrier, int threads, bool mine) {
  const std::uint32_t number = static_cast<std::uint32_t>(barrier) + cutlass::arch::NamedBarrier::ReservedNamedBarrierCount;
  std::uint32_t any;
  asm volatile(
      "{.reg .pred mine, any;\n"
      "setp.ne.u32 mine, %3, 0;\n"
      "barrier.cta.red.or.pred any, %1, %2, mine;\n"
      "selp.u32 %0, 1, 0, any;}\n"
      : "=r"(any)
      : "r"(number), "r"(threads), "r"(mine ? 1 : 0)
      : "memory");
  return any != 0;
}

/// The barrier of a consumer: those of all consumers follow the first one's.
template <class Barrier>
__device__ __forceinline__ Barrier of_consumer(Barrier first, int consumer) {
  return static_cast<Barrier>(static_cast<int>(first) + consumer);
}

}  // namespace openmsa::cuda::sm90
