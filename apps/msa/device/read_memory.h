// A kernel that does nothing but read: its rate is the limit of those that memory bounds.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace openmsa::cli {

/// Enqueues one pass over `bytes`, a multiple of 16, of 16-byte aligned device memory, whose contents are free.
cudaError_t read_memory(void* memory, std::size_t bytes, cudaStream_t stream);

}  // namespace openmsa::cli
