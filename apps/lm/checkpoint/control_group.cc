#include "lm/checkpoint/control_group.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <optional>
#include <string>

namespace openmsa::lm {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

/// What the two versions call the same things. Numbers of memory.stat count a group's children in version 2; those of
/// version 1 that do begin with "total_".
struct Version {
  const char* mount;
  const char* limit;
  const char* used;
  const char* cached[2];
};
constexpr Version kVersion1 = {"sys/fs/cgroup/memory",
                               "memory.limit_in_bytes",
                               "memory.usage_in_bytes",
                               {"total_inactive_file", "total_active_file"}};
constexpr Version kVersion2 = {"sys/fs/cgroup", "memory.max", "memory.current", {"inactive_file", "active_file"}};

std::optional<std::uint64_t> number_in(const fs::path& path) {
  std::ifstream file(path);
  std::uint64_t number = 0;
  return file >> number ? std::optional(number) : std::nullopt;  // no number: "max", or no such file
}

std::uint64_t cached_files(const Version& version, const fs::path& group) {
  std::ifstream file(group / "memory.stat");
  std::uint64_t sum = 0, value = 0;
  for (std::string name; file >> name >> value;) {
    if (std::ranges::find(version.cached, name) != std::end(version.cached)) sum += value;
  }
  return sum;
}

std::uint64_t left_by(const Version& version, const fs::path& group) {
  const auto limit = number_in(group / version.limit), usage = number_in(group / version.used);
  if (!limit || !usage) return kUnlimited;
  const std::uint64_t used = *usage - std::min(*usage, cached_files(version, group));
  return *limit - std::min(*limit, used);
}

/// Of the group and all above it. In a container the path may be that of the host, of which the container sees only its
/// own group, at the mount itself: what is not there is passed over.
std::uint64_t left_along(const Version& version, const fs::path& root, fs::path group) {
  std::uint64_t least = kUnlimited;
  for (group = group.relative_path();; group = group.parent_path()) {
    least = std::min(least, left_by(version, root / version.mount / group));
    if (group.empty()) return least;
  }
}

}  // namespace

std::uint64_t control_group_memory(const fs::path& root) {
  std::uint64_t least = kUnlimited;
  std::ifstream file(root / "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // "4:memory:/path" in version 1, "0::/path" in version 2
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = line.substr(first, second - first + 1);
    std::ranges::replace(controllers, ':', ',');
    const fs::path group = line.substr(second + 1);
    if (controllers == ",,") least = std::min(least, left_along(kVersion2, root, group));
    if (controllers.find(",memory,") != std::string::npos) least = std::min(least, left_along(kVersion1, root, group));
  }
  return least;
}

}  // namespace openmsa::lm
