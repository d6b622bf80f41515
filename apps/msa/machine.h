// The machine and the build: the facts that stand beside every measurement.
#pragma once

#include <nlohmann/json.hpp>

namespace openmsa::cli {

/// Cores in this process's affinity.
int usable_cores();

/// {"version", "cpu", "cpu_features", "cuda_device", "cores", "memory_gib", "system", "compiler"}
nlohmann::ordered_json machine_facts();

}  // namespace openmsa::cli
