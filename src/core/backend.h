// What a backend is to the rest of the library: four functions. src/api/backends.cc has a row of them for each.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <memory>

#include "core/arena.h"
#include "core/problem.h"

namespace openmsa::core {

/// What a plan keeps for its backend between calls, threads for example. Several threads may use it at once.
class BackendState {
 public:
  virtual ~BackendState() = default;
};

/// What a call runs with beside its problem.
struct Execution {
  Arena workspace;            // at least workspace_bytes(op, plan)
  void* stream;               // cudaStream_t of the CUDA backend; nullptr on the host
  const BackendState* state;  // the plan's, from make_state; nullptr where the backend keeps none
};

struct Backend {
  /// Throws Failure UNSUPPORTED for a plan that the backend does not serve, naming what is missing.
  void (*check_plan)(const Plan& plan);

  /// What the plan keeps for the backend; nullptr in the place of the function: nothing.
  std::unique_ptr<BackendState> (*make_state)(const Plan& plan);

  /// Workspace of `op` within the plan's capacities.
  std::size_t (*workspace_bytes)(openmsa_op op, const Plan& plan);

  /// Runs `op` on tensors that src/api has checked.
  void (*run)(openmsa_op op, const Problem& problem, const Execution& execution);
};

}  // namespace openmsa::core
