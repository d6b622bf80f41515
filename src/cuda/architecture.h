// A family of kernels, for one compute capability or for many. A new one is a folder beside sm90/ and a row in
// architecture.cc.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <span>
#include <string>

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda {

struct Architecture {
  const char* family;  // its folder; OPENMSA_CUDA_FAMILY names it
  const char* devices;
  bool (*runs_on)(int major, int minor);        // compute capability of the current device
  std::span<const openmsa_op> operations;       // those that it serves, in the order in which refusals name them
  std::span<const openmsa_op> fp32_operations;  // and of these, those that may write o in fp32

  /// Throws Failure UNSUPPORTED, naming the feature, where the kernels do not serve the plan.
  void (*check_plan)(const core::Plan& plan);
  /// Workspace of a served operation within the plan's capacities.
  std::size_t (*workspace_bytes)(openmsa_op op, const core::Plan& plan);
  /// Enqueues a served operation; the tensors have been checked, and there is a query or a d_k.
  void (*run)(openmsa_op op, const core::Problem& problem, core::Arena arena, Launch launch);
};

/// The kernels for the current device. Throws Failure UNSUPPORTED, naming what was found, where there are none.
const Architecture& current_architecture();

/// The current device for a reader, or why no kernel can run.
std::string describe_device();

}  // namespace openmsa::cuda
