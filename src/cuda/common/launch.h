// Launching: dynamic shared memory, and overlap of a kernel's start with the end of the one before it
// (programmatic dependent launch; every kernel begins with wait_for_earlier_kernels()).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include "cuda/common/error.h"

namespace openmsa::cuda {

/// Where the kernels of a call run.
struct Launch {
  cudaStream_t stream;
  int num_sms;
};

struct LaunchShape {
  dim3 ctas;
  unsigned int threads;
  std::size_t shared_bytes;
  unsigned int cluster = 1;  // CTAs, along x
};

/// CTAs for so many threads, or whatever a CTA has so many of.
inline unsigned int ctas_for(std::int64_t count, std::int64_t per_cta) {
  return static_cast<unsigned int>((count + per_cta - 1) / per_cta);
}

/// Lets a kernel have so much dynamic shared memory on the current device. The runtime is told once, as telling it takes
/// a tenth of a launch; never of less than before.
inline void allow_shared(const void* kernel, std::size_t bytes, const char* name) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, std::size_t> allowed;
  int device = 0;
  check(cudaGetDevice(&device), name);
  const std::lock_guard lock(mutex);
  std::size_t& most = allowed[{kernel, device}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), name);
  most = bytes;
}

/// Clusters of shape.cluster CTAs that can be on the device at once; also those larger than every device allows.
template <class... Params>
int active_clusters(void (*kernel)(Params...), LaunchShape shape) {
  const auto* const function = reinterpret_cast<const void*>(kernel);
  check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cudaFuncSetAttribute");
  allow_shared(function, shape.shared_bytes, "cudaFuncSetAttribute");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.ctas;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, function, &config), "cudaOccupancyMaxActiveClusters");
  return clusters;
}

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), LaunchShape shape, cudaStream_t stream, Args... args) {
  constexpr std::size_t kDefaultShared = 48 << 10;
  if (shape.ctas.x * shape.ctas.y == 0) return;
  if (shape.shared_bytes > kDefaultShared) {
    allow_shared(reinterpret_cast<const void*>(kernel), shape.shared_bytes, name);
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.ctas;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, Params(args)...), name);
}

}  // namespace openmsa::cuda
