// A backend's results beside those of the reference.
#pragma once

#include <vector>

#include "msa/verify/problem.h"

namespace openmsa::cli {

/// One result of an operation.
struct Finding {
  const char* result;  // its name in openmsa_tensors
  double error;
  double allowed;  // of the dtype; 0: every bit counts

  /// The error over what is allowed: up to 1 is right.
  double share() const;
};

/// Runs `op` on the reference, whose results stay in `problem`, and compares with what the backend of the plan
/// `judged` has got.
std::vector<Finding> judge(const VerifyProblem& problem, const Config& judged, const Plan& reference, openmsa_op op);

}  // namespace openmsa::cli
