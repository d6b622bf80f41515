// The CPU backend: SIMD tiles, threads over work items, scratch in the caller's workspace.
#pragma once

#include <cstddef>

#include "core/arena.h"
#include "core/problem.h"
#include "cpu/threads.h"

namespace openmsa::cpu {

/// Workspace of `op` within the plan's capacities.
std::size_t workspace_bytes(openmsa_op op, const core::Plan& plan);

void run(openmsa_op op, const core::Problem& problem, core::Arena arena, const Threads& threads);

/// Instruction sets that run here, best first.
const char* features();

}  // namespace openmsa::cpu
