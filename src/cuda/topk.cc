#include "cuda/topk.h"

#include <algorithm>

namespace openmsa::cuda {

void run_topk(const core::Problem& problem, const BatchView& batch, sm90::Launch launch) {
  const openmsa_config& config = problem.plan.config;
  const openmsa_tensors& t = problem.tensors;
  sm90::TopkParams p{};
  p.batch = batch;
  p.rules = {config.block_size, config.topk, config.num_init_blocks, config.num_local_blocks};
  p.heads = config.num_heads_kv;
  p.block_scores = static_cast<const float*>(t.block_scores.data);
  std::copy_n(t.block_scores.strides, 3, p.score_strides);
  p.topk_indices = static_cast<std::int32_t*>(t.topk_indices.data);
  std::copy_n(t.topk_indices.strides, 3, p.topk_strides);
  sm90::topk(p, launch);
}

}  // namespace openmsa::cuda
