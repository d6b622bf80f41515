// Is a decode step right? Asked before it is measured.
#pragma once

#include "decode_problem.h"

namespace openmsa::cli {

/// Compares selection, sparse and dense attention of `plan` with the reference backend on `problem`, within the
/// tolerances that the dtype allows. std::runtime_error: what differs, and by how much.
void check_decode(const Plan& plan, const DecodeProblem& problem);

}  // namespace openmsa::cli
