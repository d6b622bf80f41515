#include "cpu/cpu.h"

#include <hwy/targets.h>

#include <string>

#include "core/error.h"
#include "cpu/loops.h"
#include "cpu/stages.h"
#include "cpu/threads.h"
#include "cpu/tile/tile.h"

namespace openmsa::cpu {
namespace {

using core::Arena;
using core::Plan;
using core::Problem;

const Stage& stage_of(openmsa_op op) {
  for (const Stage& stage : kStages) {
    if (stage.op == op) return stage;
  }
  core::fail(OPENMSA_INTERNAL, "op: no CPU implementation of openmsa_", openmsa_op_name(op));
}

}  // namespace

std::unique_ptr<core::BackendState> make_state(const Plan& plan) { return std::make_unique<Threads>(plan.num_threads); }

std::size_t workspace_bytes(openmsa_op op, const Plan& plan) {
  Arena arena;
  Loops::take_ends(arena, plan);
  const Stage& stage = stage_of(op);
  if (stage.plan != nullptr) stage.plan(plan, arena);
  return arena.used();
}

void run(openmsa_op op, const Problem& problem, const core::Execution& execution) {
  Arena arena = execution.workspace;
  const Loops loops{static_cast<const Threads&>(*execution.state), Loops::take_ends(arena, problem.plan)};
  stage_of(op).run(problem, arena, loops);
}

const char* features() {
  static const std::string names = [] {
    std::string result = pair_ops() == nullptr ? "" : pair_ops()->name;
    for (std::int64_t bits = hwy::SupportedTargets() & HWY_TARGETS; bits != 0; bits &= bits - 1) {
      const std::int64_t target = bits & -bits;  // a lower bit is a better target
      if (!result.empty()) result += ' ';
      result += hwy::TargetName(target);
    }
    return result;
  }();
  return names.c_str();
}

}  // namespace openmsa::cpu
