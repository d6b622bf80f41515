// The CPU time that control groups grant, as a number of cores.
#pragma once

#include <string>

namespace openmsa::cpu {

/// Cores that this process may keep busy under the CPU quotas (cgroup version 1 and 2) of its groups and of those above
/// them, rounded up and at least 1; the largest int where there is none. `root` is where /proc and /sys lie.
int quota_cores(const std::string& root = "");

}  // namespace openmsa::cpu
