#include "msa/device/read_memory.h"

namespace openmsa::cli {
namespace {

constexpr unsigned int kThreads = 512, kBlocksPerSm = 4;
constexpr int kLoads = 4;  // of a thread that are under way at once

__global__ void __launch_bounds__(kThreads) read_kernel(uint4* memory, std::size_t count) {
  const std::size_t step = std::size_t{gridDim.x} * kThreads;
  unsigned int mixed = 0;
  for (std::size_t i = std::size_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += kLoads * step) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      loaded[n] = i + n * step < count ? __ldcs(memory + i + n * step) : uint4{};
    }
    for (const uint4& x : loaded) mixed ^= x.x ^ x.y ^ x.z ^ x.w;
  }
  // Never in practice; without a use the compiler would drop the loads.
  if (mixed == 0x9e3779b9u) memory->x = mixed;
}

}  // namespace

cudaError_t read_memory(void* memory, std::size_t bytes, cudaStream_t stream) {
  int device = 0, num_sms = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  read_kernel<<<num_sms * kBlocksPerSm, kThreads, 0, stream>>>(static_cast<uint4*>(memory), bytes / sizeof(uint4));
  return cudaGetLastError();
}

}  // namespace openmsa::cli
