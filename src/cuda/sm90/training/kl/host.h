// KL loss and its gradients.
#pragma once

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::sm90::training::kl {

/// Workspace of a call within the plan's capacities, over a selection or the whole history.
std::size_t workspace_bytes(const core::Plan& plan);

/// openmsa_kl_loss without gradients of the teacher.
void kl_loss(const core::Problem& problem, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm90::training::kl
