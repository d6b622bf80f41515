// Calls with few query tokens per sequence, as a serving engine's decode step makes them.
#pragma once

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/sm90/launches.h"

namespace openmsa::cuda {

/// Whether the decode kernels serve a call of this shape: at most 16 query tokens per sequence on average. Known from
/// shapes alone, so that a captured graph stays what it is.
bool is_decode(const core::Problem& problem);

/// Whether the attention over topk_indices does: with fp8 caches for any number of query tokens.
bool attends_by_decode(const core::Problem& problem);

/// Workspace of the index branch's candidates for every decode call of the plan.
sm90::CandidateLists take_candidates(core::Arena& arena, const core::Plan& plan);

/// select_blocks, sparse_attention and msa_attention. In the whole layer every block of the attention chooses its
/// kv_blocks from the candidates itself: there is no launch between.
void run_decode_select(const core::Problem& problem, core::Arena& arena, sm90::Launch launch);
void run_decode_attention(const core::Problem& problem, sm90::Launch launch);
void run_decode_layer(const core::Problem& problem, core::Arena& arena, sm90::Launch launch);

}  // namespace openmsa::cuda
