#include "cuda/common/call.h"
#include "cuda/generic/topk/kernels.h"
#include "cuda/generic/topk/topk.h"

namespace openmsa::cuda::generic {

void topk(const core::Problem& problem, Launch launch) {
  const TopkParams p{batch_view(problem), selection_rules(problem.plan), problem.plan.config.num_heads_kv,
                     score_view(problem.tensors.block_scores), selection_view(problem.tensors.topk_indices)};
  launch_topk(p, launch);
}

}  // namespace openmsa::cuda::generic
