// block_recall: health of a selection against dense attention.
#pragma once

#include "core/arena.h"
#include "core/plan.h"
#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::sm80::recall {

/// Workspace for every call of the plan.
std::size_t bytes(const core::Plan& plan);

void run(const core::Problem& problem, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm80::recall
