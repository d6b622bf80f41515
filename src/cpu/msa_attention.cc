// The whole layer: selection, then attention over it.

#include "core/layer_selection.h"
#include "cpu/stages.h"

namespace openmsa::cpu {

using core::Arena;
using core::Plan;
using core::Problem;

void plan_msa_attention(const Plan& plan, Arena& arena) {
  core::take_selection(plan, arena);
  plan_in_turn(plan_select_blocks, plan_sparse_attention, plan, arena);
}

void msa_attention(const Problem& problem, Arena& arena, const Loops& loops) {
  const openmsa_tensors tensors = core::with_selection(problem, arena);
  const Problem layer{problem.plan, tensors, problem.batch, problem.total_q};
  Arena select = arena, attend = arena;
  select_blocks(layer, select, loops);
  sparse_attention(layer, attend, loops);
}

}  // namespace openmsa::cpu
