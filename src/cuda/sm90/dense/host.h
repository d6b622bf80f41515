// Attention over all keys that a query sees.
#pragma once

#include "core/arena.h"
#include "core/plan.h"
#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::sm90::dense {

/// Workspace of dense attention for every call of the plan.
std::size_t attend_bytes(const core::Plan& plan);

void attend(const core::Problem& problem, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm90::dense
