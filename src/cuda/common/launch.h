// Launching: dynamic shared memory, and overlap of a kernel's start with the end of the one before it
// (programmatic dependent launch; every kernel begins with cudaGridDependencySynchronize()).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/common/error.h"

namespace openmsa::cuda {

struct LaunchShape {
  dim3 blocks;
  unsigned int threads;
  std::size_t shared_bytes;
  unsigned int cluster = 1;  // blocks, along x
};

/// Clusters of shape.cluster blocks that can be on the device at once; also those larger than every device allows.
template <class... Params>
int active_clusters(void (*kernel)(Params...), LaunchShape shape) {
  const auto* const function = reinterpret_cast<const void*>(kernel);
  check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cudaFuncSetAttribute");
  check(
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)),
      "cudaFuncSetAttribute");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.blocks;
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
  if (shape.blocks.x * shape.blocks.y == 0) return;
  if (shape.shared_bytes > kDefaultShared) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          name);
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.blocks;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, Params(args)...), name);
}

}  // namespace openmsa::cuda
