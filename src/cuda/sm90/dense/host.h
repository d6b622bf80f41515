// Attention over all keys that a query sees.
#pragma once

#include <cuda.h>

#include "core/arena.h"
#include "core/plan.h"
#include "core/problem.h"
#include "cuda/common/launch.h"
#include "cuda/sm90/dense/params.h"

namespace openmsa::cuda::sm90::dense {

/// Tiles of `queries` that the sequences of a batch and the padding after them can have.
std::int64_t max_tiles(std::int64_t total_q, std::int64_t batch, std::int64_t queries);

/// The workspace of prompt kernels, carved from an Arena: with memory for a run, without for its size.
struct PromptWorkspace {
  PromptWorkspace(core::Arena& arena, const core::Plan& plan);

  BatchIndex index;
  std::int32_t* next_tile;
};

/// What the kernels of a prompt need to know, but for the outputs.
PromptParams prompt_params(const core::Problem& problem, const PromptWorkspace& workspace);

/// q in boxes of the queries of a warpgroup with the heads of one KV head.
CUtensorMap query_map(const core::Problem& problem);

/// Workspace of dense attention for every call of the plan.
std::size_t attend_bytes(const core::Plan& plan);

void attend(const core::Problem& problem, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm90::dense
