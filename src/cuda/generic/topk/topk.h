// Standalone top-k on the CUDA backend.
#pragma once

#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::generic {

/// topk_indices from block_scores.
void topk(const core::Problem& problem, Launch launch);

}  // namespace openmsa::cuda::generic
