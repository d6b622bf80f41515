// Calls with few query tokens per sequence, as a serving engine's decode step makes them.
#pragma once

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"
#include "cuda/sm90/decode/params.h"

namespace openmsa::cuda::sm90::decode {

/// Workspace of the index branch's candidates for every decode call of the plan.
CandidateLists take_candidates(core::Arena& arena, const core::Plan& plan);

/// topk_indices.
void select(const core::Problem& problem, core::Arena arena, Launch launch);

/// Attention over topk_indices.
void attend(const core::Problem& problem, Launch launch);

/// The whole layer: every CTA of the attention chooses its kv_blocks from the candidates itself, there is no launch
/// between.
void layer(const core::Problem& problem, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm90::decode
