// Copies by threads that do not wait for them, 16 bytes at a time: for rows too small and too many for the copy engine.
//
// PTX ISA, "Data Movement and Conversion Instructions": cp.async, cp.async.commit_group, cp.async.wait_group.
#pragma once

#include <cute/arch/util.hpp>

namespace openmsa::cuda::sm90 {

/// cp.async, shared <- global, 16 bytes past the L1 cache; zeros where !`exists`, and nothing is read. For products of
/// a warpgroup a fence of the async proxy has to follow when they have arrived.
__device__ __forceinline__ void async_copy_16(void* smem, const void* global, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(cute::cast_smem_ptr_to_uint(smem)), "l"(global),
               "r"(exists ? 16 : 0)
               : "memory");
}

/// Closes the group of this thread's copies since the last one.
__device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

/// Waits until all but the last kLeft groups of this thread have arrived.
template <int kLeft>
__device__ __forceinline__ void async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kLeft) : "memory");
}

}  // namespace openmsa::cuda::sm90
