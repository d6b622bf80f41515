// How much memory this machine has left.
#pragma once

#include <cstdint>
#include <string>

namespace openmsa::lm {

/// Bytes that the system would give without swapping, and that the limits of control groups leave.
std::uint64_t available_memory();

/// InputError with both figures when `bytes` are more than that: "WHAT needs X GiB of memory, Y GiB are available".
void require_memory(const std::string& what, std::uint64_t bytes);

}  // namespace openmsa::lm
