#include "cuda/sm80/sm80.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/layer_selection.h"
#include "cuda/generic/append/append.h"
#include "cuda/generic/topk/topk.h"
#include "cuda/generic/training/host.h"
#include "cuda/sm80/attend/host.h"
#include "cuda/sm80/recall/host.h"
#include "cuda/sm80/select/host.h"
#include "cuda/sm80/select/kernels.h"
#include "cuda/sm80/training/tile_kernels.h"

namespace openmsa::cuda::sm80 {
namespace {

using core::Arena;
using core::Plan;
using core::Problem;

/// The kernels of both branches run one after the other, in the same memory.
void msa_attention(const Problem& problem, Arena arena, Launch launch) {
  const openmsa_tensors tensors = core::with_selection(problem, arena);
  const Problem layer{problem.plan, tensors, problem.batch, problem.total_q};
  select::select_blocks(layer, arena, launch);
  attend::sparse_attention(layer, arena, launch);
}

std::size_t msa_attention_bytes(const Plan& plan) {
  Arena selection;
  core::take_selection(plan, selection);
  return selection.used() + std::max(select::select_blocks_bytes(plan), attend::sparse_attention_bytes(plan));
}

void require_feature(bool condition, const std::string& feature) {
  if (!condition) core::fail(OPENMSA_UNSUPPORTED, feature);
}

template <class Value>
std::string expected_got(const char* name, const char* expected, const Value& got) {
  return std::string(name) + ": expected " + expected + " on the CUDA backend, got " + std::to_string(got);
}

}  // namespace

bool has_code() { return select::has_code(); }

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
  require_feature(!plan.is_sharded(), expected_got("shard_count", "0 or 1", config.shard_count));
  require_feature(plan.softmax_scale > 0, expected_got("softmax_scale", "a positive number", plan.softmax_scale));
}

std::size_t workspace_bytes(openmsa_op op, const Plan& plan) {
  switch (op) {
    case OPENMSA_OP_BLOCK_SCORES:
      return select::block_scores_bytes(plan);
    case OPENMSA_OP_SELECT_BLOCKS:
      return select::select_blocks_bytes(plan);
    case OPENMSA_OP_SPARSE_ATTENTION:
      return attend::sparse_attention_bytes(plan);
    case OPENMSA_OP_MSA_ATTENTION:
      return msa_attention_bytes(plan);
    case OPENMSA_OP_DENSE_ATTENTION:
      return attend::dense_attention_bytes(plan);
    case OPENMSA_OP_SPARSE_ATTENTION_BACKWARD:
      return generic::training::attention_backward_bytes(plan, false);
    case OPENMSA_OP_DENSE_ATTENTION_BACKWARD:
      return generic::training::attention_backward_bytes(plan, true);
    case OPENMSA_OP_KL_LOSS:
      return generic::training::kl_loss_bytes(plan);
    case OPENMSA_OP_MSA_ATTENTION_BACKWARD:
      return generic::training::msa_attention_backward_bytes(plan);
    case OPENMSA_OP_BLOCK_RECALL:
      return recall::bytes(plan);
    default:
      return 0;
  }
}

void run(openmsa_op op, const Problem& problem, Arena arena, Launch launch) {
  switch (op) {
    case OPENMSA_OP_BLOCK_SCORES:
      return select::block_scores(problem, arena, launch);
    case OPENMSA_OP_TOPK:
      return generic::topk(problem, launch);
    case OPENMSA_OP_SELECT_BLOCKS:
      return select::select_blocks(problem, arena, launch);
    case OPENMSA_OP_SPARSE_ATTENTION:
      return attend::sparse_attention(problem, arena, launch);
    case OPENMSA_OP_MSA_ATTENTION:
      return msa_attention(problem, arena, launch);
    case OPENMSA_OP_DENSE_ATTENTION:
      return attend::dense_attention(problem, arena, launch);
    case OPENMSA_OP_SPARSE_ATTENTION_BACKWARD:
    case OPENMSA_OP_DENSE_ATTENTION_BACKWARD:
      return generic::training::attention_backward(problem, arena, training::kTileKernels, launch);
    case OPENMSA_OP_KL_LOSS:
      return generic::training::kl_loss(problem, arena, training::kTileKernels, launch);
    case OPENMSA_OP_MSA_ATTENTION_BACKWARD:
      return generic::training::msa_attention_backward(problem, arena, training::kTileKernels, launch);
    case OPENMSA_OP_BLOCK_RECALL:
      return recall::run(problem, arena, launch);
    case OPENMSA_OP_APPEND_KV:
      return generic::append(problem, launch);
    default:
      core::fail(OPENMSA_INTERNAL, "op: expected one of kOperations");
  }
}

}  // namespace openmsa::cuda::sm80
