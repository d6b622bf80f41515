// New tokens into paged caches on the CUDA backend.
#pragma once

#include "core/problem.h"
#include "cuda/sm90/launches.h"

namespace openmsa::cuda {

/// k, v and index_k into their caches, rounded to e4m3 where those are fp8.
void run_append(const core::Problem& problem, sm90::Launch launch);

}  // namespace openmsa::cuda
