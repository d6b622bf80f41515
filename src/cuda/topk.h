// Standalone top-k on the CUDA backend.
#pragma once

#include "core/problem.h"
#include "cuda/common/batch_view.h"
#include "cuda/sm90/launches.h"

namespace openmsa::cuda {

/// topk_indices from block_scores.
void run_topk(const core::Problem& problem, const BatchView& batch, sm90::Launch launch);

}  // namespace openmsa::cuda
