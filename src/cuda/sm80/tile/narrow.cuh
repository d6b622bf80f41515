// 16-bit rows as fp16 for products with e4m3 keys, which become fp16 too: each row times the power of two that brings
// its largest magnitude to [2^14, 2^15), so that nothing is lost but what lies 2^-29 and more below it, where fp32
// sums round.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace openmsa::cuda::sm80 {

/// What a row is multiplied by, and what one of its numbers counts afterwards.
struct HalfUnit {
  float factor, unit;

  __device__ __forceinline__ explicit HalfUnit(float largest) {
    // In exponents as they lie in a float: 14 + 2 * 127 - largest's, kept off the denormals at both ends.
    constexpr std::uint32_t kBias = 127, kMost = 2 * kBias - 1;
    const std::uint32_t exponent = min(14 + 2 * kBias - (__float_as_uint(largest) >> 23), kMost);
    factor = __uint_as_float(exponent << 23);
    unit = __uint_as_float((2 * kBias - exponent) << 23);
  }
};

}  // namespace openmsa::cuda::sm80
