// Sequences with few query tokens, as a serving engine's decode step makes them. `served`: all sequences of a call, or
// those of a mixture.
#pragma once

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"
#include "cuda/sm90/decode/params.h"

namespace openmsa::cuda::sm90::decode {

/// Query tokens whose scores the index branch has in memory at once.
std::int64_t score_rows(const core::Plan& plan);

/// For every call of the plan that decode serves.
struct Workspace {
  /// has_scores: the index branch takes part.
  Workspace(core::Arena& arena, const core::Plan& plan, bool has_scores);

  SequenceIndex index;
  float* scores;  // of ScoreRows
};

/// topk_indices or candidates.
void select(const core::Problem& problem, QueryRange served, core::Arena arena, Launch launch);

/// Attention over topk_indices.
void attend(const core::Problem& problem, QueryRange served, core::Arena arena, Launch launch);

/// The whole layer: every CTA of the attention chooses its kv_blocks from the scores itself, there is no launch
/// between.
void layer(const core::Problem& problem, QueryRange served, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm90::decode
