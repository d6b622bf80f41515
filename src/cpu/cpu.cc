#include "cpu/cpu.h"

#include <hwy/targets.h>

#include <limits>
#include <string>

#include "core/error.h"
#include "core/layer_selection.h"
#include "cpu/stages.h"
#include "cpu/threads.h"

namespace openmsa::cpu {
namespace {

using core::Arena;
using core::Plan;
using core::Problem;

/// The stages of the layer run one after the other in the same scratch.
void plan_msa_attention(const Plan& plan, Arena& arena) {
  core::take_selection(plan, arena);
  Arena select = arena, attend = arena;
  plan_select_blocks(plan, select);
  plan_attention(plan, attend);
  arena = select.used() > attend.used() ? select : attend;
}

void msa_attention(const Problem& problem, Arena& arena, const Threads& threads) {
  const openmsa_tensors tensors = core::with_selection(problem, arena);
  const Problem layer{problem.plan, tensors, problem.batch, problem.total_q};
  Arena select = arena, attend = arena;
  select_blocks(layer, select, threads);
  attention(layer, attend, threads);
}

}  // namespace

int available_threads() { return Threads::available(); }

std::unique_ptr<core::BackendState> make_state(const Plan& plan) { return std::make_unique<Threads>(plan.num_threads); }

std::size_t workspace_bytes(openmsa_op op, const Plan& plan) {
  Arena arena;
  switch (op) {
    case OPENMSA_OP_BLOCK_SCORES:
      plan_block_scores(plan, arena);
      break;
    case OPENMSA_OP_SELECT_BLOCKS:
      plan_select_blocks(plan, arena);
      break;
    case OPENMSA_OP_SPARSE_ATTENTION:
    case OPENMSA_OP_DENSE_ATTENTION:
      plan_attention(plan, arena);
      break;
    case OPENMSA_OP_MSA_ATTENTION:
      plan_msa_attention(plan, arena);
      break;
    case OPENMSA_OP_SPARSE_ATTENTION_BACKWARD:
    case OPENMSA_OP_DENSE_ATTENTION_BACKWARD:
      plan_attention_backward(plan, arena);
      break;
    case OPENMSA_OP_KL_LOSS:
      plan_kl_loss(plan, arena);
      break;
    case OPENMSA_OP_BLOCK_RECALL:
      plan_block_recall(plan, arena);
      break;
    default:  // topk and append_kv work in place
      break;
  }
  return arena.used();
}

void run(openmsa_op op, const Problem& problem, const core::Execution& execution) {
  Arena arena = execution.workspace;
  const auto& threads = static_cast<const Threads&>(*execution.state);
  switch (op) {
    case OPENMSA_OP_BLOCK_SCORES:
      return block_scores(problem, arena, threads);
    case OPENMSA_OP_TOPK:
      return topk(problem, arena, threads);
    case OPENMSA_OP_SELECT_BLOCKS:
      return select_blocks(problem, arena, threads);
    case OPENMSA_OP_SPARSE_ATTENTION:
    case OPENMSA_OP_DENSE_ATTENTION:
      return attention(problem, arena, threads);
    case OPENMSA_OP_MSA_ATTENTION:
      return msa_attention(problem, arena, threads);
    case OPENMSA_OP_SPARSE_ATTENTION_BACKWARD:
    case OPENMSA_OP_DENSE_ATTENTION_BACKWARD:
      return attention_backward(problem, arena, threads);
    case OPENMSA_OP_KL_LOSS:
      return kl_loss(problem, arena, threads);
    case OPENMSA_OP_BLOCK_RECALL:
      return block_recall(problem, arena, threads);
    case OPENMSA_OP_APPEND_KV:
      return append_kv(problem, arena, threads);
    default:
      core::fail(OPENMSA_INTERNAL, "op: no CPU implementation of openmsa_", openmsa_op_name(op));
  }
}

const char* features() {
  static const std::string names = [] {
    std::string result;
    for (std::int64_t bits = hwy::SupportedTargets(); bits != 0; bits &= bits - 1) {
      const std::int64_t target = bits & -bits;  // a lower bit is a better target
      if (!result.empty()) result += ' ';
      result += hwy::TargetName(target);
    }
    return result;
  }();
  return names.c_str();
}

}  // namespace openmsa::cpu
