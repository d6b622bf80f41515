// The CUDA backend's entry points: what every architecture has in common. The kernels are those of the current device.
#include "cuda/cuda.h"

#include <openmsa/openmsa.h>

#include <algorithm>
#include <span>
#include <string>

#include "core/error.h"
#include "cuda/architecture.h"
#include "cuda/common/call.h"

namespace openmsa::cuda {
namespace {

/// "a, b or c"
std::string list_of(std::span<const openmsa_op> operations) {
  std::string text;
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const char* const separator = i == 0 ? "" : i + 1 < operations.size() ? ", " : " or ";
    text += separator;
    text += openmsa_op_name(operations[i]);
  }
  return text;
}

/// The current device's kernels, which have to serve `op`.
const Architecture& architecture_for(openmsa_op op) {
  const Architecture& architecture = current_architecture();
  if (std::ranges::find(architecture.operations, op) == architecture.operations.end()) {
    core::fail(OPENMSA_UNSUPPORTED, "op: expected ", list_of(architecture.operations),
               " on the CUDA backend, got openmsa_", openmsa_op_name(op));
  }
  return architecture;
}

}  // namespace

void check_plan(const core::Plan& plan) { current_architecture().check_plan(plan); }

std::size_t workspace_bytes(openmsa_op op, const core::Plan& plan) {
  return architecture_for(op).workspace_bytes(op, plan);
}

void run(openmsa_op op, const core::Problem& problem, const core::Execution& execution) {
  const Architecture& architecture = architecture_for(op);
  const bool may_write_fp32 = std::ranges::find(architecture.fp32_operations, op) != architecture.fp32_operations.end();
  check_tensors(problem, may_write_fp32);
  const bool has_work = problem.total_q != 0 || core::present(problem.tensors.d_k);  // without queries that is 0
  if (has_work) architecture.run(op, problem, execution.workspace, launch_on(execution.stream));
}

std::string describe() { return describe_device(); }

}  // namespace openmsa::cuda
