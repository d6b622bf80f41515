#include "cuda/sm90/training/kl/host.h"

#include <algorithm>
#include <bit>

#include "core/error.h"
#include "cuda/common/math.h"
#include "cuda/generic/lists/kernels.h"
#include "cuda/generic/schedule/kernels.h"
#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/training/call.h"
#include "cuda/sm90/training/kl/variants.h"
#include "cuda/sm90/training/kl/workspace.h"

namespace openmsa::cuda::sm90::training::kl {
namespace {

using core::Arena;
using core::present;
using core::Problem;

/// One call: what its steps have in common.
class KlLoss {
 public:
  KlLoss(const Problem& problem, Arena arena, Launch launch)
      : problem_(problem),
        config_(problem.plan.config),
        launch_(launch),
        workspace_(arena, problem.plan, is_dense()),
        lists_(call_lists(problem, workspace_.lists)),
        params_(workspace_.params),
        maps_(maps()) {
    params_.batch = lists_.batch;
    params_.topk_indices = lists_.topk_indices;
    set_layer();
  }

  void run() {
    prepare();
    for (std::int32_t head = 0; head < config_.num_heads_kv; head += workspace_.heads) {
      lists_.first_head = head;
      lists_.heads = std::min(workspace_.heads, config_.num_heads_kv - head);
      run_heads();
    }
    const openmsa_tensors& t = problem_.tensors;
    if (present(t.kl_loss)) launch_write_loss(params_, static_cast<float*>(t.kl_loss.data), launch_);
    if (present(t.d_index_k)) {
      launch_index_keys(params_, gradient_rows(t.d_index_k), workspace_.heads, config_.dtype, launch_);
    }
  }

 private:
  bool is_dense() const { return !present(problem_.tensors.topk_indices); }

  Maps maps() const {
    const openmsa_tensors& t = problem_.tensors;
    return {query_map(problem_, t.q), key_map(problem_, t.k, t.k_cache, true, kKeyBoxRows, params_.partials),
            key_map(problem_, t.index_k, t.index_k_cache, false, kKeyBoxRows, params_.partials)};
  }

  /// Parameters that are the same for all list batches.
  void set_layer() {
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
    params_.index = lists_.index;
  }

  void prepare() const {
    const std::int64_t total_k = params_.batch.total_k;
    set_zero(params_.maxima.weight, 1, launch_);
    set_zero(params_.loss, 1, launch_);
    set_zero(params_.d_index_k_sums, workspace_.heads * total_k * config_.index_dim, launch_);
    set_zero(lists_.bits, workspace_.words, launch_);
    generic::index_batch(params_.batch, lists_.index, config_.block_size, launch_);
    const openmsa_tensor& index_k = problem_.tensors.index_k;
    launch_maxima(params_, {index_k.data, {index_k.strides[0], 0}}, lists_.max_lists, config_.dtype, launch_);
  }

  /// All rows of lists_.heads KV heads.
  void run_heads() {
    const auto rows = static_cast<std::int32_t>(list_batch_rows(problem_.total_q, workspace_.max_rows));
    for (std::int32_t row = 0; row < problem_.total_q; row += rows) {
      lists_.first_row = row;
      lists_.rows = std::min(rows, params_.batch.total_q - row);
      run_batch();
    }
  }

  void run_batch() {
    params_.work = lists_.work();
    const std::int64_t places = std::int64_t{params_.work.rows} * params_.work.heads;
    set_zero(params_.next_item, 2, launch_);
    set_zero(params_.d_index_q_sums, places * config_.index_dim, launch_);
    generic::make_lists(lists_, launch_);
    find_variant(kIndexLseVariants, {config_.dtype, config_.index_dim}, "kl_loss")(params_, maps_.index_k, launch_);
    launch_row_stats(params_, launch_);
    find_variant(kKlVariants, {config_.dtype, config_.head_dim, config_.index_dim}, "kl_loss")(params_, maps_, launch_);
    launch_sum_loss(params_, launch_);
    const openmsa_tensor& d_index_q = problem_.tensors.d_index_q;
    if (present(d_index_q)) launch_index_rows(params_, gradient_rows(d_index_q), config_.dtype, launch_);
  }

  const Problem& problem_;
  const openmsa_config& config_;
  const Launch launch_;
  const Workspace workspace_;
  generic::ListParams lists_;
  Params params_;
  const Maps maps_;
};

}  // namespace

std::size_t workspace_bytes(const core::Plan& plan) {
  Arena selection, history;
  Workspace(selection, plan, false);
  Workspace(history, plan, true);
  return std::max(selection.used(), history.used());
}

void kl_loss(const Problem& problem, Arena arena, Launch launch) {
  const openmsa_tensors& t = problem.tensors;
  if (present(t.d_q) || present(t.d_k)) {
    core::fail(OPENMSA_UNSUPPORTED, present(t.d_q) ? "d_q" : "d_k",
               ": expected none on the CUDA backend, whose openmsa_kl_loss has no gradients of the teacher");
  }
  KlLoss(problem, arena, launch).run();
}

}  // namespace openmsa::cuda::sm90::training::kl
