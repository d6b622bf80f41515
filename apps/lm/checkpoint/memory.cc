#include "lm/checkpoint/memory.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>

#include "io/error.h"
#include "lm/checkpoint/control_group.h"

namespace openmsa::lm {
namespace {

constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

std::uint64_t system_memory() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  std::uint64_t kibibytes = 0;
  for (std::string unit; file >> name >> kibibytes && std::getline(file, unit);) {
    if (name == "MemAvailable:") return kibibytes * 1024;
  }
  return kUnlimited;
}

std::string gibibytes(std::uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GiB", static_cast<double>(bytes) / (1 << 30));
  return text;
}

}  // namespace

std::uint64_t available_memory() { return std::min(system_memory(), control_group_memory()); }

void require_memory(const std::string& what, std::uint64_t bytes) {
  const std::uint64_t available = available_memory();
  if (bytes <= available) return;
  throw io::InputError(what + " needs " + gibibytes(bytes) + " of memory, " + gibibytes(available) + " are available");
}

}  // namespace openmsa::lm
