#include "cuda/sm90/training/host.h"

#include <algorithm>
#include <bit>

#include "cuda/generic/lists/kernels.h"
#include "cuda/generic/schedule/kernels.h"
#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/training/call.h"
#include "cuda/sm90/training/variants.h"
#include "cuda/sm90/training/workspace.h"

namespace openmsa::cuda::sm90::training {
namespace {

using core::Arena;
using core::present;
using core::Problem;

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
        lists_(call_lists(problem, workspace_.lists)),
        batch_(lists_.batch) {}

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
    set_zero(in.bounds, problem_.batch * config_.num_heads_kv, launch_);
    set_zero(lists_.bits, workspace_.words, launch_);
    generic::index_batch(batch_, lists_.index, batch_.block_size, launch_);
    launch_key_bounds(batch_, in, config_.dtype, launch_);
  }

  /// All rows of lists_.heads KV heads.
  void run_heads() {
    const std::int64_t key_sums = std::int64_t{lists_.heads} * batch_.total_k * 2 * config_.head_dim;
    set_zero(workspace_.d_kv_sums, key_sums, launch_);
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
    set_zero(p.d_q_sums, row_sums * config_.head_dim, launch_);
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
  generic::ListParams lists_;
  const BatchView batch_;
};

}  // namespace

void attention_backward(const Problem& problem, Arena arena, Launch launch) { Backward(problem, arena, launch).run(); }

}  // namespace openmsa::cuda::sm90::training
