// Dense attention: sequences of few queries, which wait for memory, and prompts, which wait for products.

#include "cpu/stages.h"

namespace openmsa::cpu {

using core::Arena;
using core::Plan;
using core::Problem;

void plan_dense_attention(const Plan& plan, Arena& arena) {
  plan_in_turn(plan_dense_decode, plan_dense_prefill, plan, arena);
}

void dense_attention(const Problem& problem, Arena& arena, const Loops& loops) {
  Arena decode = arena, prefill = arena;
  dense_decode(problem, decode, loops);
  dense_prefill(problem, prefill, loops);
  write_attention_padding(problem);
}

}  // namespace openmsa::cpu
