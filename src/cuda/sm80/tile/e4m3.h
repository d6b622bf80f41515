// e4m3 by arithmetic, for GPUs without instructions for it; and as fp16, which holds every one of its numbers exactly.
// Tests call it on the host.
#pragma once

#include <cstdint>

#include "core/row_scale.h"
#include "cuda/common/device.h"

namespace openmsa::cuda::sm80 {

#ifdef __CUDA_ARCH__
OPENMSA_DEVICE std::uint32_t bits_of(float x) { return __float_as_uint(x); }
OPENMSA_DEVICE float float_of(std::uint32_t bits) { return __uint_as_float(bits); }
#else
inline std::uint32_t bits_of(float x) { return __builtin_bit_cast(std::uint32_t, x); }
inline float float_of(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
#endif

/// x rounded to the nearest number in e4m3, to even; to 448 where it is larger; NaN stays NaN.
OPENMSA_DEVICE float round_to_e4m3(float x) {
  constexpr float kLargest = core::kLargestFloat8E4M3;
  constexpr std::uint32_t kSign = 0x80000000u, kLeastExponent = 127 - 6;
  const float any = float_of(bits_of(x) & ~kSign), magnitude = any > kLargest ? kLargest : any;
  // Steps of 2^(e - 3), e the exponent, at least -6: those of fp32 beside 2^(e + 20).
  const std::uint32_t exponent = bits_of(magnitude) >> 23;
  const float large = float_of(((exponent > kLeastExponent ? exponent : kLeastExponent) + 20) << 23);
  return float_of(bits_of(magnitude + large - large) | (bits_of(x) & kSign));
}

/// Two numbers in e4m3, s eeee mmm, as two in fp16 that are 256 times too small, s 0eeee mmm0000000; and the bits that
/// make those NaN that are.
struct SmallHalves {
  std::uint32_t halves;
  std::uint32_t nan;

  OPENMSA_DEVICE explicit SmallHalves(std::uint32_t two) {
    const std::uint32_t spread = (two & 0xffu) << 8 | (two & 0xff00u) << 16;
    const std::uint32_t magnitude = (spread & 0x7f007f00u) >> 1;
    halves = (spread & 0x80008000u) | magnitude;
    nan = ((magnitude + 0x00800080u) >> 14 & 0x00010001u) * 0x7fffu;  // of 0x7f the sum reaches bit 14
  }
};

}  // namespace openmsa::cuda::sm80
