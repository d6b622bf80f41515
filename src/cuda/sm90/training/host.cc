#include "cuda/sm90/training/host.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>

#include "cuda/common/call.h"
#include "cuda/common/error.h"
#include "cuda/generic/lists/kernels.h"
#include "cuda/generic/lists/workspace.h"
#include "cuda/generic/schedule/kernels.h"
#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/training/variants.h"
#include "cuda/sm90/training/workspace.h"

namespace openmsa::cuda::sm90::training {
namespace {

using core::Arena;
using core::present;
using core::Problem;

constexpr std::int32_t kKeyBoxRows = 128;

void set_zero(void* data, std::size_t bytes, Launch launch) {
  check(cudaMemsetAsync(data, 0, bytes, launch.stream), "cudaMemsetAsync");
}

FigureRows figure_rows(const openmsa_tensor& figure) {
  if (!present(figure)) return {nullptr, {0, 0}};
  return {static_cast<const float*>(figure.data), {figure.strides[0], figure.strides[1]}};
}

GradientRows gradient_rows(const openmsa_tensor& gradient) {
  const bool is_aligned = has_aligned_rows(gradient);
  return {gradient.data,
          {gradient.strides[0], gradient.strides[1]},
          static_cast<std::int32_t>(gradient.shape[2]),
          gradient.dtype == OPENMSA_FLOAT32,
          is_aligned};
}

BackwardMaps backward_maps(const Problem& problem, const BackwardWorkspace& workspace) {
  const openmsa_tensors& t = problem.tensors;
  return {query_map(problem, t.q), query_map(problem, t.d_o),
          key_map(problem, t.k, t.k_cache, true, kKeyBoxRows, workspace.d_q_sums),
          key_map(problem, t.v, t.v_cache, true, kKeyBoxRows, workspace.d_q_sums)};
}

/// One gradient of attention: what its steps have in common.
class Backward {
 public:
  Backward(const Problem& problem, Arena arena, Launch launch)
      : problem_(problem),
        config_(problem.plan.config),
        launch_(launch),
        workspace_(arena, problem.plan, is_dense()),
        batch_(batch_view(problem)),
        lists_(workspace_.lists) {
    lists_.batch = batch_;
    lists_.topk_indices = selection_view(problem.tensors.topk_indices);
    const std::int64_t blocks = generic::most_blocks(batch_.total_k, batch_.batch, batch_.block_size);
    lists_.max_lists = std::min(lists_.max_lists, blocks);
    lists_.range_rows = static_cast<std::int32_t>(
        is_dense() ? kDenseRangeRows : list_range_rows(blocks, config_.topk, generic::kMaxListRows));
  }

  void run() {
    prepare_keys();
    for (std::int32_t head = 0; head < config_.num_heads_kv; head += workspace_.heads) {
      lists_.first_head = head;
      lists_.heads = std::min(workspace_.heads, config_.num_heads_kv - head);
      run_heads();
    }
  }

 private:
  bool is_dense() const { return !present(problem_.tensors.topk_indices); }

  void prepare_keys() const {
    const KeyInputs in{query_rows(problem_.tensors.k), query_rows(problem_.tensors.v), config_.num_heads_kv,
                       config_.head_dim, workspace_.bounds};
    set_zero(in.bounds, sizeof(KeyBounds) * problem_.batch * config_.num_heads_kv, launch_);
    set_zero(lists_.bits, sizeof(std::uint32_t) * workspace_.words, launch_);
    generic::index_batch(batch_, lists_.index, batch_.block_size, launch_);
    launch_key_bounds(batch_, in, config_.dtype, launch_);
  }

  /// All rows of lists_.heads KV heads.
  void run_heads() {
    const std::int64_t key_sums = std::int64_t{lists_.heads} * batch_.total_k * 2 * config_.head_dim;
    set_zero(workspace_.d_kv_sums, sizeof(float) * key_sums, launch_);
    const auto rows = static_cast<std::int32_t>(list_batch_rows(problem_.total_q, workspace_.max_rows));
    for (std::int32_t row = 0; row < problem_.total_q; row += rows) {
      lists_.first_row = row;
      lists_.rows = std::min(rows, batch_.total_q - row);
      run_batch();
    }
    const KeyGradients gradients{workspace_.d_kv_sums,
                                 lists_.first_head,
                                 lists_.heads,
                                 batch_.total_k,
                                 static_cast<float>(problem_.plan.softmax_scale),
                                 gradient_rows(problem_.tensors.d_k),
                                 gradient_rows(problem_.tensors.d_v)};
    launch_key_gradients(gradients, config_.dtype, launch_);
  }

  void run_batch() const {
    const openmsa_tensors& t = problem_.tensors;
    const BackwardParams p = backward_params();
    const RowInputs in{query_rows(t.d_o), query_rows(t.o),      figure_rows(t.lse), figure_rows(t.d_lse),
                       workspace_.bounds, config_.num_heads_kv, config_.head_dim};
    const std::int64_t row_sums = std::int64_t{p.work.rows} * p.work.heads * problem_.plan.group_size;
    set_zero(p.d_q_sums, sizeof(std::int32_t) * row_sums * config_.head_dim, launch_);
    generic::make_lists(lists_, launch_);
    launch_row_stats(p, in, config_.dtype, t.o.dtype, launch_);
    find_variant(kBackwardVariants, {config_.dtype, config_.head_dim}, "backward")(
        p, backward_maps(problem_, workspace_), launch_);
    launch_query_gradient(p, gradient_rows(t.d_q), static_cast<float>(problem_.plan.softmax_scale), config_.dtype,
                          launch_);
  }

  BackwardParams backward_params() const {
    BackwardParams p{};
    p.batch = batch_;
    p.work = lists_.work();
    p.stats = workspace_.stats;
    p.log2_group_size = std::countr_zero(static_cast<std::uint64_t>(problem_.plan.group_size));
    p.scale_log2 = scale_log2(problem_.plan);
    p.d_q_sums = workspace_.d_q_sums;
    p.d_kv_sums = workspace_.d_kv_sums;
    return p;
  }

  const Problem& problem_;
  const openmsa_config& config_;
  const Launch launch_;
  const BackwardWorkspace workspace_;
  const BatchView batch_;
  generic::ListParams lists_;
};

}  // namespace

void attention_backward(const Problem& problem, Arena arena, Launch launch) { Backward(problem, arena, launch).run(); }

}  // namespace openmsa::cuda::sm90::training
