#include "msa/machine.h"

#include <openmsa/openmsa.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

namespace openmsa::cli {
namespace {

/// x86 kernels call it "model name"; arm64 kernels give no name.
std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::string system_name() {
  utsname names{};
  if (::uname(&names) != 0) return "unknown";
  return std::string(names.sysname) + " " + names.release + " " + names.machine;
}

double memory_gib() {
  const double bytes = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  return std::round(bytes / (1 << 30) * 10) / 10;
}

}  // namespace

int usable_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (::sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
  return static_cast<int>(std::thread::hardware_concurrency());
}

nlohmann::ordered_json machine_facts() {
  return {{"version", openmsa_version()},
          {"cpu", cpu_name()},
          {"cpu_features", openmsa_cpu_features()},
          {"cuda_device", openmsa_cuda_device()},
          {"cores", usable_cores()},
          {"memory_gib", memory_gib()},
          {"system", system_name()},
          {"compiler", OPENMSA_COMPILER}};
}

std::string processor_line(const std::string& dtype) {
  std::istringstream names(openmsa_cpu_features());
  std::string name, run;
  while (names >> name && name.ends_with("_BF16")) {
    if (dtype == "bf16") run += name + " and ";
  }
  return cpu_name() + ", " + run + name;
}

}  // namespace openmsa::cli
