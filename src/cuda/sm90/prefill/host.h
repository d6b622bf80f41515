// Calls with many query tokens per sequence.
#pragma once

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::sm90::prefill {

/// Index branch: topk_indices, or block_scores where they are wanted.
void select(const core::Problem& problem, core::Arena arena, Launch launch);

/// Attention over topk_indices.
void attend(const core::Problem& problem, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm90::prefill
