// New tokens into paged caches on the CUDA backend.
#pragma once

#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::generic {

/// k, v and index_k into their caches, rounded to e4m3 where those are fp8.
void append(const core::Problem& problem, Launch launch);

}  // namespace openmsa::cuda::generic
