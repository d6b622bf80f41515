#include "cuda/sm90/sm90.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/layer_selection.h"
#include "cuda/generic/append/append.h"
#include "cuda/generic/shards/shards.h"
#include "cuda/generic/topk/topk.h"
#include "cuda/generic/training/host.h"
#include "cuda/sm90/decode/host.h"
#include "cuda/sm90/dense/host.h"
#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/prefill/host.h"
#include "cuda/sm90/prefill/workspace.h"
#include "cuda/sm90/recall/host.h"
#include "cuda/sm90/training/tile_kernels.h"

namespace openmsa::cuda::sm90 {
namespace {

using core::Arena;
using core::Plan;
using core::Problem;

CallShape shape_of(const Problem& problem) {
  return {problem.total_q, problem.batch, problem.plan.config.max_seqlen_k, decode::score_rows(problem.plan)};
}

/// topk_indices or, where these are wanted, candidates.
void select_blocks(const Problem& problem, const Route& route, Arena arena, Launch launch) {
  for (const QueryRange served : route.decode) {
    if (!served.is_empty()) decode::select(problem, served, arena, launch);
  }
  if (!route.prefill.is_empty()) prefill::select(problem, route.prefill, arena, launch);
}

void sparse_attention(const Problem& problem, const Route& route, Arena arena, Launch launch) {
  for (const QueryRange served : route.decode) {
    if (!served.is_empty()) decode::attend(problem, served, arena, launch);
  }
  if (!route.prefill.is_empty()) prefill::attend(problem, route.prefill, arena, launch);
}

/// What decode serves in both branches needs no selection in memory. The kernels run one after the other, in the same
/// memory.
void msa_attention(const Problem& problem, Arena arena, Launch launch) {
  const CallShape shape = shape_of(problem);
  Route select = select_route(shape), attend = attend_route(shape);
  for (int i = 0; i < 2; ++i) {
    if (select.decode[i].is_empty() || select.decode[i] != attend.decode[i]) continue;
    decode::layer(problem, select.decode[i], arena, launch);
    select.decode[i] = attend.decode[i] = kNoSequences;
  }
  if (select == kNobodyServes) return;
  const openmsa_tensors tensors = core::with_selection(problem, arena);
  const Problem layer{problem.plan, tensors, problem.batch, problem.total_q};
  select_blocks(layer, select, arena, launch);
  sparse_attention(layer, attend, arena, launch);
}

/// Workspace of an operation, whatever its calls look like.
std::size_t workspace_of(openmsa_op op, const Plan& plan) {
  const bool attends = op == OPENMSA_OP_SPARSE_ATTENTION || op == OPENMSA_OP_MSA_ATTENTION;
  const bool selects =
      op == OPENMSA_OP_SELECT_BLOCKS || op == OPENMSA_OP_SELECT_CANDIDATES || op == OPENMSA_OP_MSA_ATTENTION;
  Arena arena;
  if (op == OPENMSA_OP_MSA_ATTENTION) core::take_selection(plan, arena);
  Arena decode = arena, select = arena, attend = arena;
  if (selects || attends) decode::Workspace(decode, plan, selects);
  if (op == OPENMSA_OP_BLOCK_SCORES) prefill::SelectWorkspace(select, plan, prefill::kNoList);
  if (selects) prefill::SelectWorkspace(select, plan, prefill::list_capacity(plan));
  if (attends) prefill::AttendWorkspace(attend, plan);
  return std::max({decode.used(), select.used(), attend.used()});
}

void require_feature(bool condition, const std::string& feature) {
  if (!condition) core::fail(OPENMSA_UNSUPPORTED, feature);
}

template <class Value>
std::string expected_got(const char* name, const char* expected, const Value& got) {
  return std::string(name) + ": expected " + expected + " on the CUDA backend, got " + std::to_string(got);
}

}  // namespace

void check_plan(const Plan& plan) {
  const openmsa_config& config = plan.config;
  require_feature(config.dtype == OPENMSA_BFLOAT16 || config.dtype == OPENMSA_FLOAT16,
                  "dtype: expected bf16 or fp16 on the CUDA backend");
  require_feature(config.head_dim == 64 || config.head_dim == 128,
                  expected_got("head_dim", "64 or 128", config.head_dim));
  require_feature(config.index_dim == 64 || config.index_dim == 128,
                  expected_got("index_dim", "64 or 128", config.index_dim));
  require_feature(config.block_size == 64 || config.block_size == 128,
                  expected_got("block_size", "64 or 128", config.block_size));
  const bool is_power = (plan.group_size & (plan.group_size - 1)) == 0;
  require_feature(is_power && plan.group_size <= 16,
                  expected_got("num_heads_q / num_heads_kv", "1, 2, 4, 8 or 16", plan.group_size));
  require_feature(config.num_heads_kv <= 64, expected_got("num_heads_kv", "at most 64", config.num_heads_kv));
  require_feature(config.page_size == 0 || config.page_size >= 16,
                  expected_got("page_size", "0 or at least 16", config.page_size));
  require_feature(plan.softmax_scale > 0, expected_got("softmax_scale", "a positive number", plan.softmax_scale));
}

std::size_t workspace_bytes(openmsa_op op, const Plan& plan) {
  if (op == OPENMSA_OP_SPARSE_ATTENTION_BACKWARD) return generic::training::attention_backward_bytes(plan, false);
  if (op == OPENMSA_OP_DENSE_ATTENTION_BACKWARD) return generic::training::attention_backward_bytes(plan, true);
  if (op == OPENMSA_OP_MSA_ATTENTION_BACKWARD) return generic::training::msa_attention_backward_bytes(plan);
  if (op == OPENMSA_OP_DENSE_ATTENTION) return dense::attend_bytes(plan);
  if (op == OPENMSA_OP_KL_LOSS) return generic::training::kl_loss_bytes(plan);
  if (op == OPENMSA_OP_BLOCK_RECALL) return recall::bytes(plan);
  return workspace_of(op, plan);
}

void run(openmsa_op op, const Problem& problem, Arena arena, Launch launch) {
  switch (op) {
    case OPENMSA_OP_BLOCK_SCORES:
      return prefill::select(problem, kAllSequences, arena, launch);
    case OPENMSA_OP_SELECT_BLOCKS:
    case OPENMSA_OP_SELECT_CANDIDATES:
      return select_blocks(problem, select_route(shape_of(problem)), arena, launch);
    case OPENMSA_OP_SPARSE_ATTENTION:
      return sparse_attention(problem, attend_route(shape_of(problem)), arena, launch);
    case OPENMSA_OP_MSA_ATTENTION:
      return msa_attention(problem, arena, launch);
    case OPENMSA_OP_DENSE_ATTENTION:
      return dense::attend(problem, arena, launch);
    case OPENMSA_OP_SPARSE_ATTENTION_BACKWARD:
    case OPENMSA_OP_DENSE_ATTENTION_BACKWARD:
      return generic::training::attention_backward(problem, arena, training::kTileKernels, launch);
    case OPENMSA_OP_MSA_ATTENTION_BACKWARD:
      return generic::training::msa_attention_backward(problem, arena, training::kTileKernels, launch);
    case OPENMSA_OP_KL_LOSS:
      return generic::training::kl_loss(problem, arena, training::kTileKernels, launch);
    case OPENMSA_OP_BLOCK_RECALL:
      return recall::run(problem, arena, launch);
    case OPENMSA_OP_TOPK:
      return generic::topk(problem, launch);
    case OPENMSA_OP_APPEND_KV:
      return generic::append(problem, launch);
    case OPENMSA_OP_MERGE_CANDIDATES:
      return generic::merge_candidates(problem, launch);
    case OPENMSA_OP_MERGE_PARTIALS:
      return generic::merge_partials(problem, launch);
    default:
      core::fail(OPENMSA_INTERNAL, "op: expected one of kOperations");
  }
}

}  // namespace openmsa::cuda::sm90
