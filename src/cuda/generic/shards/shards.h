// What ranks with shards of the keys have sent each other, put together on the CUDA backend.
#pragma once

#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::generic {

/// topk_indices from all_candidates.
void merge_candidates(const core::Problem& problem, Launch launch);

/// o and lse from partial_o and partial_lse.
void merge_partials(const core::Problem& problem, Launch launch);

}  // namespace openmsa::cuda::generic
