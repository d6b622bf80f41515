// Entry point of the standalone top-k.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/generic/topk/params.h"

namespace openmsa::cuda::generic {

void launch_topk(const TopkParams& p, Launch launch);

}  // namespace openmsa::cuda::generic
