#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/common/launch.h"
#include "cuda/generic/append/append.cuh"
#include "cuda/generic/append/kernels.h"

namespace openmsa::cuda::generic {

void launch_append(const AppendParams& p, openmsa_dtype dtype, Launch launch) {
  const auto kernel = dtype == OPENMSA_BFLOAT16 ? append_kernel<__nv_bfloat16> : append_kernel<__half>;
  cuda::launch("append", kernel, {static_cast<unsigned int>(p.batch.total_q), kAppendWarps * 32, 0}, launch.stream, p);
}

}  // namespace openmsa::cuda::generic
