// The portable kernels' asynchronous copies.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

namespace openmsa::cuda::sm80 {

inline std::uint32_t shared_address(const void* pointer) { return emulation::shared_address(pointer); }
inline void async_copy_16(std::uint32_t shared, const void* global, bool exists) {
  emulation::start_copy(shared, global, 16, exists);
}
inline void async_copy_4(std::uint32_t shared, const void* global, bool exists) {
  emulation::start_copy(shared, global, 4, exists);
}
inline void async_commit() { emulation::close_copies(); }
template <int kLeft>
void async_wait() {
  emulation::wait_for_copies(kLeft);
}

}  // namespace openmsa::cuda::sm80
