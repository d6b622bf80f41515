// The C entry points: check, run, turn failures into a status. No maths.
#include <openmsa/openmsa.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <string>

#include "api/backends.h"
#include "api/check.h"
#include "api/guarded.h"
#include "core/backend.h"
#include "core/error.h"
#include "cpu/cpu.h"
#include "cpu/default_threads.h"
#include "cuda/cuda.h"

struct openmsa_plan {
  explicit openmsa_plan(const openmsa_config& config)
      : plan(openmsa::core::make_plan(config, config.num_threads == 0 ? openmsa::cpu::default_threads() : 0)),
        backend(openmsa::api::backend(config.backend)) {
    backend.check_plan(plan);
    if (backend.make_state != nullptr) state = backend.make_state(plan);
  }

  const openmsa::core::Plan plan;
  const openmsa::core::Backend& backend;
  std::unique_ptr<const openmsa::core::BackendState> state;
};

namespace {

using openmsa::api::adopt;
using openmsa::api::guarded;
using openmsa::core::require;

thread_local std::string last_error;

std::size_t workspace_bytes(const openmsa_plan& plan, openmsa_op op) {
  require(op >= 0 && op < OPENMSA_OP_COUNT, "op: expected 0 to ", OPENMSA_OP_COUNT - 1, ", got ", static_cast<int>(op));
  return plan.backend.workspace_bytes(op, plan.plan);
}

void check_workspace(const openmsa_plan& plan, openmsa_op op, const openmsa_tensors& tensors,
                     openmsa_workspace workspace) {
  const std::size_t needed = workspace_bytes(plan, op);
  const bool is_device = openmsa::core::is_device(plan.plan.config.backend);
  require(is_device || workspace.stream == nullptr, "workspace.stream: expected NULL on the CPU, got ",
          workspace.stream);
  require(workspace.bytes >= needed, "workspace: expected at least ", needed, " bytes, got ", workspace.bytes);
  if (needed == 0) return;
  require(workspace.data != nullptr, "workspace: expected memory, got NULL");
  const std::size_t alignment = is_device ? 256 : openmsa::core::Arena::kAlignment;
  require(reinterpret_cast<std::uintptr_t>(workspace.data) % alignment == 0, "workspace: expected ", alignment,
          "-byte alignment, got ", workspace.data);
  openmsa::api::check_outside(tensors, workspace.data, needed);
}

}  // namespace

// If even the message has no memory, the status must do.
openmsa_status openmsa::api::failed(openmsa_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

const char* openmsa_status_string(openmsa_status status) {
  switch (status) {
    case OPENMSA_SUCCESS:
      return "success";
    case OPENMSA_INVALID_ARGUMENT:
      return "invalid argument";
    case OPENMSA_UNSUPPORTED:
      return "unsupported";
    case OPENMSA_OUT_OF_MEMORY:
      return "out of memory";
    case OPENMSA_INTERNAL:
      return "internal error";
    case OPENMSA_CUDA_ERROR:
      return "CUDA error";
  }
  return "unknown status";
}

const char* openmsa_last_error(void) { return last_error.c_str(); }

#define OPENMSA_TEXT(x) #x
#define OPENMSA_VERSION_TEXT(major, minor, patch) OPENMSA_TEXT(major) "." OPENMSA_TEXT(minor) "." OPENMSA_TEXT(patch)
const char* openmsa_version(void) {
  return OPENMSA_VERSION_TEXT(OPENMSA_VERSION_MAJOR, OPENMSA_VERSION_MINOR, OPENMSA_VERSION_PATCH);
}

const char* openmsa_cpu_features(void) { return openmsa::cpu::features(); }

const char* openmsa_cuda_device(void) {
  try {
    static const std::string text = openmsa::cuda::describe();
    return text.c_str();
  } catch (const std::exception&) {
    return "unknown";
  }
}

openmsa_status openmsa_default_threads(int32_t* num_threads) {
  return guarded([&] {
    require(num_threads != nullptr, "num_threads: expected a pointer, got NULL");
    *num_threads = openmsa::cpu::default_threads();
  });
}

size_t openmsa_dtype_bytes(openmsa_dtype dtype) {
  switch (dtype) {
    case OPENMSA_FLOAT64:
    case OPENMSA_INT64:
      return 8;
    case OPENMSA_FLOAT32:
    case OPENMSA_INT32:
      return 4;
    case OPENMSA_BFLOAT16:
    case OPENMSA_FLOAT16:
      return 2;
    case OPENMSA_FLOAT8_E4M3:
      return 1;
  }
  return 0;
}

openmsa_tensor openmsa_contiguous(void* data, openmsa_dtype dtype, int32_t rank, const int64_t* shape) {
  openmsa_tensor tensor{};
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.rank = rank;
  int64_t stride = 1;
  for (int32_t d = std::min<int32_t>(rank, OPENMSA_MAX_RANK) - 1; d >= 0; --d) {
    tensor.shape[d] = shape[d];
    tensor.strides[d] = stride;
    stride *= shape[d];
  }
  return tensor;
}

void openmsa_config_init(openmsa_config* config) {
  *config = {};
  config->struct_size = sizeof(*config);
  config->backend = OPENMSA_BACKEND_CPU;
  config->dtype = OPENMSA_FLOAT32;
  config->block_size = 128;
  config->topk = 16;
  config->num_local_blocks = 1;
  config->max_batch = 1;
}

void openmsa_tensors_init(openmsa_tensors* tensors) {
  *tensors = {};
  tensors->struct_size = sizeof(*tensors);
}

openmsa_status openmsa_plan_create(const openmsa_config* config, openmsa_plan** plan) {
  return guarded([&] {
    require(plan != nullptr, "plan: expected a pointer, got NULL");
    *plan = nullptr;
    *plan = new openmsa_plan(adopt(config, "config"));
  });
}

void openmsa_plan_destroy(openmsa_plan* plan) { delete plan; }

openmsa_status openmsa_plan_workspace_bytes(const openmsa_plan* plan, openmsa_op op, size_t* bytes) {
  return guarded([&] {
    require(plan != nullptr, "plan: expected a plan, got NULL");
    require(bytes != nullptr, "bytes: expected a pointer, got NULL");
    *bytes = workspace_bytes(*plan, op);
  });
}

openmsa_status openmsa_run(const openmsa_plan* plan, openmsa_op op, const openmsa_tensors* tensors,
                           openmsa_workspace workspace) {
  return guarded([&] {
    require(plan != nullptr, "plan: expected a plan, got NULL");
    const openmsa_tensors adopted = adopt(tensors, "tensors");
    const openmsa::core::Problem problem = openmsa::api::check(plan->plan, op, adopted);
    check_workspace(*plan, op, adopted, workspace);
    plan->backend.run(op, problem, {openmsa::core::Arena(workspace.data), workspace.stream, plan->state.get()});
  });
}

openmsa_status openmsa_check(const openmsa_plan* plan, openmsa_op op, const openmsa_tensors* tensors) {
  return guarded([&] {
    require(plan != nullptr, "plan: expected a plan, got NULL");
    openmsa::api::check(plan->plan, op, adopt(tensors, "tensors"));
  });
}
