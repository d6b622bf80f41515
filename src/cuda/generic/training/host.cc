#include "cuda/generic/training/host.h"

#include <bit>

#include "core/error.h"
#include "cuda/generic/lists/kernels.h"
#include "cuda/generic/training/call.h"
#include "cuda/generic/training/kernels.h"
#include "cuda/generic/training/kl/loss.h"
#include "cuda/generic/training/kl/workspace.h"
#include "cuda/generic/training/workspace.h"

namespace openmsa::cuda::generic::training {
namespace {

using core::Arena;
using core::Plan;
using core::present;
using core::Problem;

bool is_dense(const Problem& problem) { return !present(problem.tensors.topk_indices); }

/// The gradient of attention: what its steps have in common.
class Backward {
 public:
  Backward(const Problem& problem, const BackwardWorkspace& workspace, const TileKernels& kernels, Launch launch)
      : problem_(problem), config_(problem.plan.config), kernels_(kernels), launch_(launch), workspace_(workspace) {}

  /// Before all batches.
  void prepare(const generic::ListParams& lists) const {
    const KeyInputs in{query_rows(problem_.tensors.k), query_rows(problem_.tensors.v), config_.num_heads_kv,
                       config_.head_dim, workspace_.bounds};
    launch_key_bounds(lists, in, config_.dtype, launch_);
  }

  /// Before and after all rows of lists.heads KV heads.
  void begin_heads(const generic::ListParams& lists) const {
    set_zero(workspace_.d_kv_sums, std::int64_t{lists.heads} * lists.batch.total_k * 2 * config_.head_dim, launch_);
  }
  void end_heads(const generic::ListParams& lists) const {
    const KeyGradients gradients{workspace_.d_kv_sums,
                                 lists.first_head,
                                 lists.heads,
                                 lists.batch.total_k,
                                 static_cast<float>(problem_.plan.softmax_scale),
                                 gradient_rows(problem_.tensors.d_k),
                                 gradient_rows(problem_.tensors.d_v)};
    launch_key_gradients(gradients, config_.dtype, launch_);
  }

  /// A batch, whose lists are there; writes `teacher`, if there is one.
  void run(const generic::ListParams& lists, const TeacherRows& teacher) const {
    const openmsa_tensors& t = problem_.tensors;
    const BackwardParams p = params(lists, teacher);
    const SeenKeys keys{{lists.topk_indices, lists.topk}, workspace_.bounds, config_.num_heads_kv};
    const RowInputs in{query_rows(t.d_o), query_rows(t.o), figure_rows(t.lse), figure_rows(t.d_lse), config_.head_dim};
    const std::int64_t row_sums = std::int64_t{p.work.rows} * p.work.heads * problem_.plan.group_size;
    set_zero(p.d_q_sums, row_sums * config_.head_dim, launch_);
    launch_row_bounds(p, keys, launch_);
    launch_row_stats(p, in, config_.dtype, t.o.dtype, launch_);
    kernels_.backward(problem_, p, launch_);
    launch_query_gradient(p, gradient_rows(t.d_q), static_cast<float>(problem_.plan.softmax_scale), config_.dtype,
                          launch_);
  }

 private:
  BackwardParams params(const generic::ListParams& lists, const TeacherRows& teacher) const {
    BackwardParams p{};
    p.batch = lists.batch;
    p.work = lists.work();
    p.stats = workspace_.stats;
    p.teacher = teacher;
    p.log2_group_size = std::countr_zero(static_cast<std::uint64_t>(problem_.plan.group_size));
    p.scale_log2 = scale_log2(problem_.plan);
    p.d_q_sums = workspace_.d_q_sums;
    p.d_kv_sums = workspace_.d_kv_sums;
    return p;
  }

  const Problem& problem_;
  const openmsa_config& config_;
  const TileKernels& kernels_;
  const Launch launch_;
  const BackwardWorkspace workspace_;
};

void refuse_gradients_of_teacher(const openmsa_tensors& t) {
  if (!present(t.d_q) && !present(t.d_k)) return;
  core::fail(OPENMSA_UNSUPPORTED, present(t.d_q) ? "d_q" : "d_k",
             ": expected none on the CUDA backend, whose openmsa_kl_loss has no gradients of the teacher");
}

/// The workspace of each call.
struct BackwardMemory {
  BackwardMemory(Arena& arena, const Plan& plan, bool is_dense)
      : batches(arena, plan, is_dense, BackwardWorkspace::costs(plan)), backward(arena, plan, batches) {}

  ListBatches batches;
  BackwardWorkspace backward;
};

struct LossMemory {
  LossMemory(Arena& arena, const Plan& plan, bool is_dense)
      : batches(arena, plan, is_dense, kl::LossWorkspace::costs(plan, is_dense)),
        loss(arena, plan, is_dense, batches) {}

  ListBatches batches;
  kl::LossWorkspace loss;
};

struct BackwardAndLossMemory {
  BackwardAndLossMemory(Arena& arena, const Plan& plan)
      : batches(arena, plan, false, costs(plan)), backward(arena, plan, batches), loss(arena, plan, false, batches) {}

  static BatchCosts costs(const Plan& plan) {
    const BatchCosts a = BackwardWorkspace::costs(plan), b = kl::LossWorkspace::costs(plan, false);
    return {a.key_bytes + b.key_bytes, a.place_bytes + b.place_bytes, kLeastBackwardPlaces};
  }

  ListBatches batches;
  BackwardWorkspace backward;
  kl::LossWorkspace loss;
};

template <class Memory, class... Args>
std::size_t bytes_of(const Args&... args) {
  Arena arena;
  Memory(arena, args...);
  return arena.used();
}

}  // namespace

void attention_backward(const Problem& problem, Arena arena, const TileKernels& kernels, Launch launch) {
  const BackwardMemory memory(arena, problem.plan, is_dense(problem));
  const Backward backward(problem, memory.backward, kernels, launch);
  generic::ListParams lists = begin_lists(problem, memory.batches, launch);
  backward.prepare(lists);
  for_each_batch(
      problem, memory.batches, lists, [&] { backward.begin_heads(lists); },
      [&] {
        generic::make_lists(lists, launch);
        backward.run(lists, {});
      },
      [&] { backward.end_heads(lists); });
}

void kl_loss(const Problem& problem, Arena arena, const TileKernels& kernels, Launch launch) {
  refuse_gradients_of_teacher(problem.tensors);
  const LossMemory memory(arena, problem.plan, is_dense(problem));
  kl::Loss loss(problem, memory.loss, kernels, launch);
  generic::ListParams lists = begin_lists(problem, memory.batches, launch);
  loss.prepare(lists, memory.batches.heads);
  const auto nothing = [] {};
  for_each_batch(
      problem, memory.batches, lists, nothing,
      [&] {
        generic::make_lists(lists, launch);
        loss.begin_batch(lists);
        loss.run_teacher();
        loss.run_student();
      },
      nothing);
  loss.finish(memory.batches.heads);
}

void msa_attention_backward(const Problem& problem, Arena arena, const TileKernels& kernels, Launch launch) {
  const BackwardAndLossMemory memory(arena, problem.plan);
  const Backward backward(problem, memory.backward, kernels, launch);
  kl::Loss loss(problem, memory.loss, kernels, launch);
  generic::ListParams lists = begin_lists(problem, memory.batches, launch);
  backward.prepare(lists);
  loss.prepare(lists, memory.batches.heads);
  for_each_batch(
      problem, memory.batches, lists, [&] { backward.begin_heads(lists); },
      [&] {
        generic::make_lists(lists, launch);
        loss.begin_batch(lists);
        backward.run(lists, kernels.gives_teacher ? loss.teacher() : TeacherRows{});
        if (!kernels.gives_teacher) loss.run_teacher();
        set_zero(lists.tickets, lists.heads * lists.max_lists, launch);
        loss.run_student();
      },
      [&] { backward.end_heads(lists); });
  loss.finish(memory.batches.heads);
}

std::size_t attention_backward_bytes(const Plan& plan, bool dense) { return bytes_of<BackwardMemory>(plan, dense); }

std::size_t kl_loss_bytes(const Plan& plan) {
  return std::max(bytes_of<LossMemory>(plan, false), bytes_of<LossMemory>(plan, true));
}

std::size_t msa_attention_backward_bytes(const Plan& plan) { return bytes_of<BackwardAndLossMemory>(plan); }

}  // namespace openmsa::cuda::generic::training
