// The C++ type of a dtype, for launches of kernels that have it as a template argument.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <openmsa/openmsa.h>

namespace openmsa::cuda::generic::training {

/// Calls launch_with(Element()) with the type of `dtype`, bf16 or fp16.
template <class LaunchWith>
void with_element(openmsa_dtype dtype, const LaunchWith& launch_with) {
  dtype == OPENMSA_BFLOAT16 ? launch_with(__nv_bfloat16()) : launch_with(__half());
}

}  // namespace openmsa::cuda::generic::training
