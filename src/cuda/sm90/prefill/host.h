// Sequences with many query tokens.
#pragma once

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"
#include "cuda/common/query_range.h"

namespace openmsa::cuda::sm90::prefill {

/// Index branch of the sequences in `served`: topk_indices, or block_scores or candidates where these are
/// wanted.
void select(const core::Problem& problem, QueryRange served, core::Arena arena, Launch launch);

/// Attention of the sequences in `served` over topk_indices.
void attend(const core::Problem& problem, QueryRange served, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm90::prefill
