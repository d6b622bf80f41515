// Access to memory that may not be this process's.
#pragma once

#include <cstddef>
#include <functional>

namespace openmsa::judge {

/// Copies bytes between any of host memory and that of a backend's tensors; waits until it is done.
using Copy = std::function<void(void* to, const void* from, std::size_t bytes)>;

}  // namespace openmsa::judge
