// The reference backend: every operation as plainly as its equation, in float64 or float32. It judges the others.
#pragma once

#include "core/problem.h"

namespace openmsa::ref {

/// Runs `op` in the precision of the plan's backend; allocates what it needs.
void run(openmsa_op op, const core::Problem& problem);

}  // namespace openmsa::ref
