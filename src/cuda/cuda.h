// The CUDA backend: work is enqueued on the caller's stream; nothing is allocated, read back or waited for.
// In a build without CUDA, absent.cc takes its place and refuses every plan.
#pragma once

#include <cstddef>
#include <string>

#include "core/backend.h"

namespace openmsa::cuda {

/// Whether the current device can run the kernels and the plan is one that they serve. Throws Failure UNSUPPORTED,
/// naming what was found or which feature is missing.
void check_plan(const core::Plan& plan);

/// Workspace of `op` within the plan's capacities.
std::size_t workspace_bytes(openmsa_op op, const core::Plan& plan);

/// `problem` has device pointers, whose values have not been checked.
void run(openmsa_op op, const core::Problem& problem, const core::Execution& execution);

/// The device in words, or why there is none, as `msa info` prints it.
std::string describe();

}  // namespace openmsa::cuda
