// What is there to run on, and which plans the kernels serve.
#include <cuda_runtime_api.h>

#include <string>

#include "core/error.h"
#include "cuda/cuda.h"

namespace openmsa::cuda {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// Empty when the current device can run sm_90a code; else what was found instead.
std::string obstacle() {
  int driver = 0, runtime = 0, device = 0, major = 0, minor = 0;
  cudaRuntimeGetVersion(&runtime);
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no NVIDIA driver was found";
  if (driver / 1000 < runtime / 1000) {
    return "the driver supports CUDA " + version_text(driver) + ", this build needs CUDA " +
           std::to_string(runtime / 1000) + ".0 or later";
  }
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return std::string("no CUDA device can be used (") + cudaGetErrorString(error) + ")";
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (major != 9 || minor != 0) {
    return "the kernels are built for compute capability 9.0 (Hopper), device " + std::to_string(device) + " has " +
           std::to_string(major) + "." + std::to_string(minor);
  }
  return "";
}

void require_feature(bool condition, const std::string& feature) {
  if (!condition) core::fail(OPENMSA_UNSUPPORTED, feature);
}

template <class Value>
std::string expected_got(const char* name, const char* expected, const Value& got) {
  return std::string(name) + ": expected " + expected + " on the CUDA backend, got " + std::to_string(got);
}

}  // namespace

void check_plan(const core::Plan& plan) {
  const openmsa_config& config = plan.config;
  const std::string found = obstacle();
  require_feature(found.empty(), "backend: expected a Hopper GPU for the CUDA backend; " + found +
                                     "; the CPU backend works without one");
  require_feature(config.dtype == OPENMSA_BFLOAT16 || config.dtype == OPENMSA_FLOAT16,
                  "dtype: expected bf16 or fp16 on the CUDA backend");
  require_feature(config.head_dim == 64 || config.head_dim == 128,
                  expected_got("head_dim", "64 or 128", config.head_dim));
  require_feature(config.index_dim == 64 || config.index_dim == 128,
                  expected_got("index_dim", "64 or 128", config.index_dim));
  require_feature(config.block_size == 64 || config.block_size == 128,
                  expected_got("block_size", "64 or 128", config.block_size));
  const bool is_power = (plan.group_size & (plan.group_size - 1)) == 0;
  require_feature(is_power && plan.group_size <= 16,
                  expected_got("num_heads_q / num_heads_kv", "1, 2, 4, 8 or 16", plan.group_size));
  require_feature(config.num_heads_kv <= 64, expected_got("num_heads_kv", "at most 64", config.num_heads_kv));
  require_feature(config.page_size == 0 || config.page_size >= 16,
                  expected_got("page_size", "0 or at least 16", config.page_size));
  require_feature(plan.softmax_scale > 0, expected_got("softmax_scale", "a positive number", plan.softmax_scale));
}

std::string describe() {
  std::string found = obstacle();
  if (!found.empty()) return found;
  int device = 0;
  cudaGetDevice(&device);
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return "no CUDA device can be used";
  return std::string(properties.name) + ", compute capability " + std::to_string(properties.major) + "." +
         std::to_string(properties.minor) + ", " + std::to_string(properties.multiProcessorCount) + " SMs";
}

}  // namespace openmsa::cuda
