#include "cpu/quota.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

namespace openmsa::cpu {
namespace {

constexpr double kUnlimited = std::numeric_limits<double>::infinity();

using CoresOf = double (*)(const std::string& group);

/// Version 2: cpu.max has "QUOTA PERIOD", or "max PERIOD", where `max` is no number.
double cores_of_v2(const std::string& group) {
  std::ifstream file(group + "/cpu.max");
  double quota = 0, period = 0;
  return file >> quota >> period && period > 0 ? quota / period : kUnlimited;
}

/// Version 1: two files; a quota of -1 is none.
double cores_of_v1(const std::string& group) {
  std::ifstream quota_file(group + "/cpu.cfs_quota_us"), period_file(group + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  return quota_file >> quota && period_file >> period && quota > 0 && period > 0 ? quota / period : kUnlimited;
}

/// The least that the group at `path` and those above it have. In a container the path may be the host's and lead
/// nowhere; the top is the container's own group then.
double least(const std::string& top, std::string path, CoresOf cores_of) {
  double result = cores_of(top);
  for (; path.size() > 1; path.erase(path.rfind('/'))) result = std::min(result, cores_of(top + path));
  return result;
}

/// A line of /proc/self/cgroup, "HIERARCHY:CONTROLLERS:PATH". That of version 2 names no controllers.
double least_of(const std::string& root, const std::string& line) {
  std::istringstream fields(line);
  std::string hierarchy, controllers, path;
  std::getline(std::getline(std::getline(fields, hierarchy, ':'), controllers, ':'), path);
  if (path.empty() || path.front() != '/') return kUnlimited;
  const std::string groups = root + "/sys/fs/cgroup";
  if (controllers.empty()) {
    return std::min(least(groups, path, cores_of_v2), least(groups + "/unified", path, cores_of_v2));
  }
  if (("," + controllers + ",").find(",cpu,") == std::string::npos) return kUnlimited;
  return std::min(least(groups + "/cpu", path, cores_of_v1), least(groups + "/" + controllers, path, cores_of_v1));
}

}  // namespace

int quota_cores(const std::string& root) {
  double cores = kUnlimited;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) cores = std::min(cores, least_of(root, line));
  return static_cast<int>(std::clamp<double>(std::ceil(cores), 1, std::numeric_limits<int>::max()));
}

}  // namespace openmsa::cpu
