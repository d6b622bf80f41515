// Values that the compiler would work out again, and an order that the assembler would change: both are kept from them.
#pragma once

#include <cstdint>
#include <cute/arch/util.hpp>

namespace openmsa::cuda::sm90 {

/// threadIdx.x, read once (PTX ISA, "Special Registers": %tid): left to itself the compiler reads the special register
/// again wherever it is used.
__device__ __forceinline__ int thread_index() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

/// `pointer`, of which the compiler knows nothing: what is computed from it stays inside a loop instead of
/// taking registers all the way through it.
template <class T>
__device__ __forceinline__ const T* opaque(const T* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

/// A place in dynamic shared memory. A pointer that the compiler does not know to be one to shared memory makes every
/// access a slow generic one; and where it knows how the address came about it works it out anew in every loop.
template <class T>
__device__ __forceinline__ T& shared_at(std::uint32_t address) {
  asm volatile("" : "+r"(address));
  return *static_cast<T*>(__cvta_shared_to_generic(address));
}

/// Keeps what `x` is made of in front of what follows: the assembler respects a branch on it. x >= 0, or NaN.
/// PTX ISA, "Miscellaneous Instructions": nanosleep.
__device__ __forceinline__ void keep_before(float x) {
  if (!(x >= 0)) asm volatile("nanosleep.u32 0;");  // NaN only
}

}  // namespace openmsa::cuda::sm90
