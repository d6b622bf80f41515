#include "cuda/architecture.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <string_view>

#include "core/error.h"
#ifdef OPENMSA_HAS_SM80
#include "cuda/sm80/sm80.h"
#endif
#ifdef OPENMSA_HAS_SM90
#include "cuda/sm90/sm90.h"
#endif

namespace openmsa::cuda {
namespace {

/// The one place that knows which devices there are kernels for. The first row that runs on a device is taken.
constexpr Architecture kArchitectures[] = {
#ifdef OPENMSA_HAS_SM90
    {"sm90", "9.0 (Hopper)", [](int major, int minor) { return major == 9 && minor == 0; }, sm90::kOperations,
     sm90::kFp32Operations, sm90::check_plan, sm90::workspace_bytes, sm90::run},
#endif
#ifdef OPENMSA_HAS_SM80
    {"sm80", "8.0 and later", [](int major, int) { return major >= 8 && sm80::has_code(); }, sm80::kOperations,
     sm80::kFp32Operations, sm80::check_plan, sm80::workspace_bytes, sm80::run},
#endif
};

struct Capability {
  int major = 0, minor = 0;
  std::string text() const { return std::to_string(major) + "." + std::to_string(minor); }
};

/// The kernels for the current device, or why there are none.
struct Probe {
  const Architecture* architecture = nullptr;
  int device = -1;
  std::string obstacle;
};

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// text(row) of all rows, put together.
template <class Text>
std::string every_row(Text text) {
  std::string all;
  for (const Architecture& row : kArchitectures) all += (all.empty() ? "" : " or ") + text(row);
  return all;
}

Probe probe() {
  int driver = 0, runtime = 0, device = 0;
  cudaRuntimeGetVersion(&runtime);
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return {nullptr, -1, "no NVIDIA driver was found"};
  if (driver / 1000 < runtime / 1000) {
    return {nullptr, -1,
            "the driver supports CUDA " + version_text(driver) + ", this build needs CUDA " +
                std::to_string(runtime / 1000) + ".0 or later"};
  }
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) {
    return {nullptr, -1, std::string("no CUDA device can be used (") + cudaGetErrorString(error) + ")"};
  }
  Capability found;
  cudaDeviceGetAttribute(&found.major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&found.minor, cudaDevAttrComputeCapabilityMinor, device);
  const char* const wanted = std::getenv("OPENMSA_CUDA_FAMILY");  // for tests
  for (const Architecture& row : kArchitectures) {
    if (wanted != nullptr && std::string_view(wanted) != row.family) continue;
    if (row.runs_on(found.major, found.minor)) return {&row, device, ""};
  }
  const std::string of_family = wanted == nullptr ? "" : std::string(" of the family ") + wanted;
  return {nullptr, device,
          "this build has no kernels" + of_family + " for device " + std::to_string(device) +
              ", which has compute capability " + found.text()};
}

}  // namespace

const Architecture& current_architecture() {
  // Every call asks: what a thread found is kept for as long as its device stays the same.
  thread_local int known_device = -1;
  thread_local const Architecture* known = nullptr;
  int device = -1;
  if (known != nullptr && cudaGetDevice(&device) == cudaSuccess && device == known_device) return *known;

  const Probe found = probe();
  if (found.architecture != nullptr) {
    known_device = found.device;
    known = found.architecture;
    return *known;
  }
  const std::string devices = every_row([](const Architecture& row) { return std::string(row.devices); });
  core::fail(OPENMSA_UNSUPPORTED, "backend: expected a GPU of compute capability ", devices, " for the CUDA backend; ",
             found.obstacle, "; the CPU backend works without one");
}

std::string describe_device() {
  const Probe found = probe();
  if (found.architecture == nullptr) return found.obstacle;
  int device = 0;
  cudaGetDevice(&device);
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return "no CUDA device can be used";
  return std::string(properties.name) + ", compute capability " +
         Capability{properties.major, properties.minor}.text() + ", " + std::to_string(properties.multiProcessorCount) +
         " SMs";
}

}  // namespace openmsa::cuda
