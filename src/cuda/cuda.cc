// The CUDA backend's entry points: what every architecture has in common. The kernels are those of the current device.
#include "cuda/cuda.h"

#include <algorithm>
#include <span>
#include <string>
#include <string_view>

#include "core/error.h"
#include "core/operation_name.h"
#include "cuda/architecture.h"
#include "cuda/common/call.h"

namespace openmsa::cuda {
namespace {

/// "a, b or c"
std::string list_of(std::span<const openmsa_op> operations) {
  std::string text;
  for (std::size_t i = 0; i < operations.size(); ++i) {
    const char* const separator = i == 0 ? "" : i + 1 < operations.size() ? ", " : " or ";
    const std::string_view name = core::operation_name(operations[i]);
    text += separator;
    text += name.substr(name.find('_') + 1);  // without the prefix "openmsa_"
  }
  return text;
}

/// The current device's kernels, which have to serve `op`.
const Architecture& architecture_for(openmsa_op op) {
  const Architecture& architecture = current_architecture();
  if (std::ranges::find(architecture.operations, op) == architecture.operations.end()) {
    core::fail(OPENMSA_UNSUPPORTED, "op: expected ", list_of(architecture.operations), " on the CUDA backend, got ",
               core::operation_name(op));
  }
  return architecture;
}

}  // namespace

void check_plan(const core::Plan& plan) { current_architecture().check_plan(plan); }

std::size_t workspace_bytes(openmsa_op op, const core::Plan& plan) {
  return architecture_for(op).workspace_bytes(op, plan);
}

void run(openmsa_op op, const core::Problem& problem, core::Arena arena, void* stream) {
  check_tensors(problem);
  const Architecture& architecture = architecture_for(op);
  if (problem.total_q != 0) architecture.run(op, problem, arena, launch_on(stream));
}

std::string describe() { return describe_device(); }

}  // namespace openmsa::cuda
