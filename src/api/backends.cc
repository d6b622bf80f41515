#include "api/backends.h"

#include "core/error.h"
#include "cpu/cpu.h"
#include "cuda/cuda.h"
#include "ref/ref.h"

namespace openmsa::api {
namespace {

struct Row {
  openmsa_backend name;
  core::Backend backend;
};

// clang-format off
constexpr Row kRows[] = {
    {OPENMSA_BACKEND_CPU,               {cpu::check_plan,  cpu::make_state, cpu::workspace_bytes,  cpu::run}},
    {OPENMSA_BACKEND_CUDA,              {cuda::check_plan, nullptr,         cuda::workspace_bytes, cuda::run}},
    {OPENMSA_BACKEND_REFERENCE,         {ref::check_plan,  nullptr,         ref::workspace_bytes,  ref::run}},
    {OPENMSA_BACKEND_REFERENCE_FLOAT32, {ref::check_plan,  nullptr,         ref::workspace_bytes,  ref::run}},
};
// clang-format on

}  // namespace

const core::Backend& backend(openmsa_backend name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.backend;
  }
  core::fail(OPENMSA_INTERNAL, "backend: ", static_cast<int>(name), " has no row in the table of backends");
}

}  // namespace openmsa::api
