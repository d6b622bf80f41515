// Stands in for the CUDA backend in a build without it.
#include "core/error.h"
#include "cuda/cuda.h"

namespace openmsa::cuda {

void check_plan(const core::Plan&) {
  core::fail(OPENMSA_UNSUPPORTED,
             "backend: this build of openmsa has no CUDA backend (configured with OPENMSA_CUDA=OFF)");
}

std::size_t workspace_bytes(openmsa_op, const core::Plan&) { return 0; }

void run(openmsa_op, const core::Problem& problem, const core::Execution&) { check_plan(problem.plan); }

std::string describe() { return "not built"; }

}  // namespace openmsa::cuda
