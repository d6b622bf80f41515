// CUDA errors as the library's exception.
#pragma once

#include <cuda_runtime_api.h>

#include "core/error.h"

namespace openmsa::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a failed launch must not fail the next call
  core::fail(OPENMSA_CUDA_ERROR, what, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

}  // namespace openmsa::cuda
