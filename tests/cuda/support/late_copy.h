// Numbers that a kernel writes as late as it may.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace openmsa::test {

/// to[i] = from[i] for i < count, by a kernel that lets the next one begin long before it writes.
void enqueue_late_copy(std::int32_t* to, const std::int32_t* from, int count, cudaStream_t stream);

}  // namespace openmsa::test
