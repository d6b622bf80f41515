// Is a prefill right? Asked before it is measured.
#pragma once

#include "msa/bench/prefill/problem.h"

namespace openmsa::cli {

/// Compares a few query rows of the problem's selection with the reference backend's scores.
/// std::runtime_error: what differs.
void check_prefill_selection(const PrefillProblem& problem);

/// Compares o of a few query rows with the reference backend: over the selection that the problem holds, or dense.
/// std::runtime_error: what differs, and by how much.
void check_prefill_output(const PrefillProblem& problem, bool is_dense);

}  // namespace openmsa::cli
