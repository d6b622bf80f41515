// The gradient of the sparse layer: attention's, then the KL loss with its gradients. What they share, the teacher's
// scores, is a fraction of either: computing them together is left to the GPU.

#include "cpu/stages.h"

namespace openmsa::cpu {

using core::Arena;
using core::Plan;
using core::Problem;

void plan_msa_attention_backward(const Plan& plan, Arena& arena) {
  plan_in_turn(plan_attention_backward, plan_kl_loss, plan, arena);
}

void msa_attention_backward(const Problem& problem, Arena& arena, const Loops& loops) {
  Arena backward = arena, kl = arena;
  attention_backward(problem, backward, loops);
  const openmsa_tensors tensors = core::without_teacher(problem.tensors);
  kl_loss({problem.plan, tensors, problem.batch, problem.total_q}, kl, loops);
}

}  // namespace openmsa::cpu
