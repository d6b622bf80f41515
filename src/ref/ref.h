// The reference backend: every operation as plainly as its equation, in float64 or float32. It judges the others.
#pragma once

#include <cstddef>

#include "core/backend.h"

namespace openmsa::ref {

/// Every plan is served.
inline void check_plan(const core::Plan&) {}

/// None: what it needs, it allocates.
inline std::size_t workspace_bytes(openmsa_op, const core::Plan&) { return 0; }

/// Runs `op` in the precision of the plan's backend.
void run(openmsa_op op, const core::Problem& problem, const core::Execution& execution);

}  // namespace openmsa::ref
