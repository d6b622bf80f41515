// Copies from global to shared memory that threads start and do not wait for (PTX ISA, "Data Movement and Conversion
// Instructions": cp.async).
#pragma once

#include <cstdint>

namespace openmsa::cuda::sm80 {

/// Where in shared memory a generic pointer points.
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes past the L1 cache; zeros where !`exists`, and nothing is read.
__device__ __forceinline__ void async_copy_16(std::uint32_t shared, const void* global, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global), "r"(exists ? 16 : 0)
               : "memory");
}

/// 4 bytes; zero where !`exists`.
__device__ __forceinline__ void async_copy_4(std::uint32_t shared, const void* global, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared), "l"(global), "r"(exists ? 4 : 0)
               : "memory");
}

/// Closes the group of this thread's copies since the last one.
__device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

/// Waits until all but the last kLeft groups of this thread have arrived.
template <int kLeft>
__device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
}

}  // namespace openmsa::cuda::sm80
