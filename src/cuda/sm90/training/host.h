// Gradients for training.
#pragma once

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::sm90::training {

/// d_q, d_k and d_v of attention over topk_indices or, where they are absent, of dense attention.
void attention_backward(const core::Problem& problem, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm90::training
