// Programmatic dependent launch, as kernels see it: common/launch.h lets a kernel start before the one ahead of it in
// the stream has ended.
#pragma once

namespace openmsa::cuda {

/// Waits until all kernels ahead in the stream are complete and their writes visible. Nothing that they write, and
/// nothing that they read and this kernel writes, may be touched before. Below sm_90 kernels start one by one.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

/// Lets the next kernel of the stream start.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

}  // namespace openmsa::cuda
