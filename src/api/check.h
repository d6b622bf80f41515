// Argument checks of every operation, driven by the table in operations.h. Nothing has run when they fail.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>

#include "core/problem.h"

namespace openmsa::api {

/// Checks presence, dtype, rank, shape, strides, alignment, then relations between tensors, then values (lengths, page
/// numbers, block indices). Throws core::Failure naming argument, expected and got.
core::Problem check(const core::Plan& plan, openmsa_op op, const openmsa_tensors& tensors);

/// Refuses tensors in the workspace's first `bytes`, where their elements would be written over.
void check_outside(const openmsa_tensors& tensors, const void* workspace, std::size_t bytes);

}  // namespace openmsa::api
