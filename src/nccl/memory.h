// Where tensors lie that NCCL sends, and copies of a few bytes between there and the host.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>

namespace openmsa::nccl {

/// Throws UNSUPPORTED for a backend whose tensors NCCL does not reach.
void check_backend(openmsa_backend backend);

/// Enqueued on `stream`; `from` may change afterwards.
void copy_from_host(void* to, const void* from, std::size_t bytes, void* stream);

/// Waits for `stream`.
void copy_to_host(void* to, const void* from, std::size_t bytes, void* stream);

}  // namespace openmsa::nccl
