#include "cuda/generic/training/kl/loss.h"

#include <bit>

#include "cuda/common/math.h"
#include "cuda/generic/training/call.h"
#include "cuda/generic/training/kl/kernels.h"

namespace openmsa::cuda::generic::training::kl {

using core::present;

Loss::Loss(const core::Problem& problem, const LossWorkspace& workspace, const TileKernels& kernels, Launch launch)
    : problem_(problem), config_(problem.plan.config), kernels_(kernels), launch_(launch), params_(workspace.params) {
  const openmsa_tensors& t = problem_.tensors;
  const core::Plan& plan = problem_.plan;
  params_.num_heads = config_.num_heads_kv;
  params_.log2_group_size = std::countr_zero(static_cast<std::uint64_t>(plan.group_size));
  params_.index_dim = config_.index_dim;
  params_.scale_log2 = scale_log2(plan);
  params_.index_scale = static_cast<float>(plan.index_scale);
  params_.index_scale_log2 = static_cast<float>(plan.index_scale * kLog2E);
  params_.index_q = query_rows(t.index_q);
  if (present(t.kl_weights)) {
    params_.weights = {static_cast<const float*>(t.kl_weights.data), t.kl_weights.strides[0]};
  }
  params_.lse = figure_rows(t.lse);
}

void Loss::prepare(const generic::ListParams& lists, std::int32_t heads) {
  params_.batch = lists.batch;
  params_.topk_indices = lists.topk_indices;
  params_.index = lists.index;
  set_zero(params_.maxima.weight, 1, launch_);
  set_zero(params_.loss, 1, launch_);
  set_zero(params_.d_index_k_sums, std::int64_t{heads} * params_.batch.total_k * config_.index_dim, launch_);
  const openmsa_tensor& index_k = problem_.tensors.index_k;
  launch_maxima(params_, {index_k.data, {index_k.strides[0], 0}}, lists.max_lists, config_.dtype, launch_);
}

void Loss::begin_batch(const generic::ListParams& lists) {
  params_.work = lists.work();
  const std::int64_t places = std::int64_t{params_.work.rows} * params_.work.heads;
  set_zero(params_.next_item, kItemCounters, launch_);
  set_zero(params_.d_index_q_sums, places * config_.index_dim, launch_);
}

void Loss::run_teacher() const { kernels_.teacher(problem_, params_, launch_); }

void Loss::run_student() const {
  const openmsa_tensors& t = problem_.tensors;
  kernels_.index_lse(problem_, params_, launch_);
  launch_row_stats(params_, launch_);
  kernels_.kl(problem_, params_, launch_);
  launch_sum_loss(params_, launch_);
  if (present(t.d_index_q)) launch_index_rows(params_, gradient_rows(t.d_index_q), config_.dtype, launch_);
}

void Loss::finish(std::int32_t heads) const {
  const openmsa_tensors& t = problem_.tensors;
  if (present(t.kl_loss)) launch_write_loss(params_, static_cast<float*>(t.kl_loss.data), launch_);
  if (present(t.d_index_k)) launch_index_keys(params_, gradient_rows(t.d_index_k), heads, config_.dtype, launch_);
}

}  // namespace openmsa::cuda::generic::training::kl
