// Entry point of the kernel that appends.
#pragma once

#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/generic/append/params.h"

namespace openmsa::cuda::generic {

/// New tokens of `dtype`, bf16 or fp16.
void launch_append(const AppendParams& p, openmsa_dtype dtype, Launch launch);

}  // namespace openmsa::cuda::generic
