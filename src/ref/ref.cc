#include "ref/ref.h"

#include "core/error.h"
#include "ref/stages.h"

namespace openmsa::ref {

void run(openmsa_op op, const core::Problem& problem, const core::Execution&) {
  const bool in_float = problem.plan.config.backend == OPENMSA_BACKEND_REFERENCE_FLOAT32;
  for (const Stage& stage : kStages) {
    if (stage.op == op) return in_float ? stage.in_float(problem) : stage.in_double(problem);
  }
  core::fail(OPENMSA_INTERNAL, "op: the reference backend has no openmsa_", openmsa_op_name(op));
}

}  // namespace openmsa::ref
