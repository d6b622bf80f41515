#include "cuda/common/grid_dependency.cuh"
#include "cuda/support/device_memory.h"
#include "cuda/support/late_copy.h"

namespace openmsa::test {
namespace {

__global__ void copy_late(std::int32_t* to, const std::int32_t* from, int count) {
  constexpr long long kCycles = 200000;
  cuda::let_next_kernel_start();
  const long long begin = clock64();
  while (clock64() - begin < kCycles) {
  }
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) to[i] = from[i];
}

}  // namespace

void enqueue_late_copy(std::int32_t* to, const std::int32_t* from, int count, cudaStream_t stream) {
  copy_late<<<1, 32, 0, stream>>>(to, from, count);
  require_cuda(cudaGetLastError(), "copy_late");
}

}  // namespace openmsa::test
