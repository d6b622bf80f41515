// What the host sides of the gradient and of the KL loss have in common.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

#include "core/problem.h"
#include "cuda/common/call.h"
#include "cuda/common/error.h"
#include "cuda/generic/lists/workspace.h"
#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/training/params.h"

namespace openmsa::cuda::sm90::training {

inline constexpr std::int32_t kKeyBoxRows = 128;

template <class T>
void set_zero(T* data, std::int64_t count, Launch launch) {
  check(cudaMemsetAsync(data, 0, sizeof(T) * static_cast<std::size_t>(count), launch.stream), "cudaMemsetAsync");
}

/// lse or d_lse.
inline FigureRows figure_rows(const openmsa_tensor& figure) {
  if (!core::present(figure)) return {nullptr, {0, 0}};
  return {static_cast<const float*>(figure.data), {figure.strides[0], figure.strides[1]}};
}

/// A gradient with or without heads.
inline GradientRows gradient_rows(const openmsa_tensor& gradient) {
  return {gradient.data,
          {gradient.strides[0], gradient.rank == 3 ? gradient.strides[1] : 0},
          static_cast<std::int32_t>(gradient.shape[gradient.rank - 1]),
          gradient.dtype == OPENMSA_FLOAT32,
          has_aligned_rows(gradient)};
}

/// The lists of a call: those of `workspace` over its selection, or over everything.
inline generic::ListParams call_lists(const core::Problem& problem, const generic::ListParams& workspace) {
  generic::ListParams lists = workspace;
  lists.batch = batch_view(problem);
  lists.topk_indices = selection_view(problem.tensors.topk_indices);
  const std::int64_t blocks = generic::most_blocks(lists.batch.total_k, lists.batch.batch, lists.batch.block_size);
  lists.max_lists = std::min(lists.max_lists, blocks);
  const bool is_dense = !core::present(problem.tensors.topk_indices);
  lists.range_rows = static_cast<std::int32_t>(
      is_dense ? kDenseRangeRows : list_range_rows(blocks, problem.plan.config.topk, generic::kMaxListRows));
  return lists;
}

/// Lists that a plan's calls need at most, in batches of `max_rows` rows and `heads` KV heads.
inline generic::ListCapacity list_capacity(const core::Plan& plan, bool is_dense, std::int64_t heads,
                                           std::int64_t max_rows) {
  const openmsa_config& config = plan.config;
  const std::int64_t blocks = std::min(generic::most_blocks(plan.max_total_k, config.max_batch, config.block_size),
                                       config.max_batch * plan.max_blocks);
  const std::int64_t ranges = covering(max_rows, is_dense ? kDenseRangeRows : kLeastRangeRows);
  return {config.max_batch, heads, max_rows * heads, ranges, is_dense ? 0 : config.topk, plan.max_blocks, blocks};
}

}  // namespace openmsa::cuda::sm90::training
