// The index branch.
#pragma once

#include <cstddef>

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::sm80::select {

/// Workspace for every call of the plan.
std::size_t block_scores_bytes(const core::Plan& plan);
std::size_t select_blocks_bytes(const core::Plan& plan);

/// block_scores of all sequences.
void block_scores(const core::Problem& problem, core::Arena arena, Launch launch);

/// topk_indices of all sequences.
void select_blocks(const core::Problem& problem, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm80::select
