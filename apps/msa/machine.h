// The machine and the build: the facts that stand beside every measurement.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace openmsa::cli {

/// Cores in this process's affinity.
int usable_cores();

/// {"version", "cpu", "cpu_features", "cuda_device", "cores", "memory_gib", "system", "compiler"}
nlohmann::ordered_json machine_facts();

/// The processor and the instruction sets that the cpu backend runs there for numbers of this type: what multiplies bf16
/// stands before what does all the rest.
std::string processor_line(const std::string& dtype);

}  // namespace openmsa::cli
