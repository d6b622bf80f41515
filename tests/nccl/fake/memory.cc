// The tensors of the CPU backend, which this NCCL reaches.
#include "../../../src/nccl/memory.h"

#include <cstring>

namespace openmsa::nccl {

void check_backend(openmsa_backend) {}

void copy_from_host(void* to, const void* from, std::size_t bytes, void*) { std::memcpy(to, from, bytes); }

void copy_to_host(void* to, const void* from, std::size_t bytes, void*) { std::memcpy(to, from, bytes); }

}  // namespace openmsa::nccl
