// Argument checks of every operation, driven by the table in operations.h. Nothing has run when they fail.
#pragma once

#include <openmsa/openmsa.h>

#include "core/problem.h"

namespace openmsa::api {

/// Checks presence, dtype, rank, shape, strides, alignment, then relations between tensors, then values (lengths, page
/// numbers, block indices). Throws core::Failure naming argument, expected and got.
core::Problem check(const core::Plan& plan, openmsa_op op, const openmsa_tensors& tensors);

}  // namespace openmsa::api
