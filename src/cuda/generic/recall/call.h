// Block recall on the host: what a call is the same in on every architecture.
#pragma once

#include <algorithm>

#include "core/problem.h"
#include "cuda/common/call.h"
#include "cuda/generic/recall/params.h"

namespace openmsa::cuda::generic::recall {

inline Figure figure(const openmsa_tensor& tensor) {
  return {static_cast<float*>(tensor.data), {tensor.strides[0], tensor.strides[1]}};
}

/// What `p` has beside its tiles. mass: of a call's workspace.
template <class Tiles>
void set_results(RecallParams<Tiles>& p, const core::Problem& problem, float* mass) {
  const openmsa_tensors& t = problem.tensors;
  p.max_blocks = static_cast<std::int32_t>(problem.plan.max_blocks);
  p.mass = mass;
  p.topk_indices = selection_view(t.topk_indices);
  p.topk = problem.plan.config.topk;
  p.block_recall = figure(t.block_recall);
  p.score_recall = figure(t.score_recall);
}

/// run() on all of a call's `tiles`, at most `at_once` of them at a time.
template <class Tiles, class Run>
void run_in_parts(RecallParams<Tiles>& p, std::int64_t tiles, std::int64_t at_once, Run run) {
  for (std::int64_t first = 0; first < tiles; first += at_once) {
    p.first_tile = static_cast<std::int32_t>(first);
    p.tiles = static_cast<std::int32_t>(std::min(at_once, tiles - first));
    run();
  }
}

}  // namespace openmsa::cuda::generic::recall
