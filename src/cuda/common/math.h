// Numbers and arithmetic that every kernel needs.
#pragma once

#include <cstdint>

#include "cuda/common/device.h"

namespace openmsa::cuda {

inline constexpr std::uint32_t kFullWarp = 0xffffffffu;  // all lanes of a warp take part

inline constexpr double kLog2E = 1.4426950408889634;
inline constexpr float kLn2 = 0.69314718055994530942f;

/// Exponent of a power of two. Page sizes, block sizes and box sizes are such, and a division takes a warp longer than
/// a load from shared memory.
OPENMSA_DEVICE int log2_of(std::int32_t power) {
#ifdef __CUDA_ARCH__
  return 31 - __clz(power);
#else
  return 31 - __builtin_clz(static_cast<unsigned int>(power));
#endif
}

}  // namespace openmsa::cuda
