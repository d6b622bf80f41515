// Is a decode step right? Asked before it is measured.
#pragma once

#include "msa/bench/decode/problem.h"

namespace openmsa::cli {

/// Runs selection, attention over it and the whole layer of `plan`, for the first call of `problem`, and compares a few
/// rows with the reference backend within the tolerances that the dtype allows; dense attention too where wanted.
/// std::runtime_error: what differs, and by how much.
void check_decode(const Plan& plan, const DecodeProblem& problem, bool with_dense);

}  // namespace openmsa::cli
