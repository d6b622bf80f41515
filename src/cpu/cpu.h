// The CPU backend: SIMD tiles, threads over work items, scratch in the caller's workspace.
#pragma once

#include <cstddef>
#include <memory>

#include "core/backend.h"

namespace openmsa::cpu {

/// Every plan is served.
inline void check_plan(const core::Plan&) {}

/// The plan's threads.
std::unique_ptr<core::BackendState> make_state(const core::Plan& plan);

std::size_t workspace_bytes(openmsa_op op, const core::Plan& plan);

void run(openmsa_op op, const core::Problem& problem, const core::Execution& execution);

/// Instruction sets that run here, best first.
const char* features();

}  // namespace openmsa::cpu
