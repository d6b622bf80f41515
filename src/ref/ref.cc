#include "ref/ref.h"

#include "core/error.h"
#include "ref/stages.h"

namespace openmsa::ref {
namespace {

template <class C>
void run_in(openmsa_op op, const core::Problem& problem) {
  switch (op) {
    case OPENMSA_OP_BLOCK_SCORES:
      return run_block_scores<C>(problem);
    case OPENMSA_OP_TOPK:
      return run_topk<C>(problem);
    case OPENMSA_OP_SELECT_BLOCKS:
      return run_select_blocks<C>(problem);
    case OPENMSA_OP_SPARSE_ATTENTION:
      return run_sparse_attention<C>(problem);
    case OPENMSA_OP_MSA_ATTENTION:
      return run_msa_attention<C>(problem);
    case OPENMSA_OP_DENSE_ATTENTION:
      return run_dense_attention<C>(problem);
    case OPENMSA_OP_SPARSE_ATTENTION_BACKWARD:
    case OPENMSA_OP_DENSE_ATTENTION_BACKWARD:
      return run_attention_backward<C>(problem);
    case OPENMSA_OP_KL_LOSS:
      return run_kl_loss<C>(problem);
    case OPENMSA_OP_BLOCK_RECALL:
      return run_block_recall<C>(problem);
    case OPENMSA_OP_APPEND_KV:
      return run_append_kv(problem);
    case OPENMSA_OP_COUNT:
      break;
  }
  core::fail(OPENMSA_INTERNAL, "op: the reference backend has no openmsa_", openmsa_op_name(op));
}

}  // namespace

void run(openmsa_op op, const core::Problem& problem, const core::Execution&) {
  if (problem.plan.config.backend == OPENMSA_BACKEND_REFERENCE_FLOAT32) return run_in<float>(op, problem);
  run_in<double>(op, problem);
}

}  // namespace openmsa::ref
