#include <algorithm>

#include "cuda/common/call.h"
#include "cuda/generic/shards/kernels.h"
#include "cuda/generic/shards/shards.h"

namespace openmsa::cuda::generic {

void merge_candidates(const core::Problem& problem, Launch launch) {
  const openmsa_tensor& all = problem.tensors.all_candidates;
  MergeCandidatesParams p{};
  p.batch = batch_view(problem);
  p.rules = selection_rules(problem.plan);
  p.heads = problem.plan.config.num_heads_kv;
  p.shards = problem.plan.config.shard_count;
  p.candidates.data = static_cast<Ranked*>(all.data);
  std::copy_n(all.strides + 1, 3, p.candidates.strides);
  p.shard_stride = all.strides[0];
  p.topk_indices = selection_view(problem.tensors.topk_indices);
  launch_merge_candidates(p, launch);
}

void merge_partials(const core::Problem& problem, Launch launch) {
  const openmsa_tensors& t = problem.tensors;
  MergePartialsParams p{};
  p.batch = batch_view(problem);
  p.heads = problem.plan.config.num_heads_q;
  p.head_dim = problem.plan.config.head_dim;
  p.shards = problem.plan.config.shard_count;
  p.partial_o = t.partial_o.data;
  std::copy_n(t.partial_o.strides, 3, p.o_strides);
  p.partial_lse = static_cast<const float*>(t.partial_lse.data);
  std::copy_n(t.partial_lse.strides, 3, p.lse_strides);
  p.out = output_rows(t);
  launch_merge_partials(p, t.partial_o.dtype, t.o.dtype, launch);
}

}  // namespace openmsa::cuda::generic
