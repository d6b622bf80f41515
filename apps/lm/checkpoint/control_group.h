// The memory that control groups (of a container, a service, a batch job) leave to this process.
#pragma once

#include <cstdint>
#include <filesystem>

namespace openmsa::lm {

/// Bytes that the tightest of this process's groups and their parents, of version 1 or 2, leaves; the largest number
/// where none has a limit. Cached files count as free, as they do for the system as a whole. `root` is "/" but in tests.
std::uint64_t control_group_memory(const std::filesystem::path& root = "/");

}  // namespace openmsa::lm
