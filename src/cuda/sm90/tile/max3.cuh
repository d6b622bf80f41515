// The largest of many scores with the integer unit: its maximum takes three operands where that of floats takes two, at
// the same rate (64 per cycle and SM).
//
// Bits of positive floats are ordered as integers, those of negative ones the other way around. So the largest integer
// is the answer if it is a positive number; if it is negative, all are, and the smallest integer is the answer. What is
// left is a NaN of positive sign.
#pragma once

#include <cstdint>
#include <cute/config.hpp>

namespace openmsa::cuda::sm90 {

/// The largest of the bits of value(i), i < kCount.
template <int kCount, class Value>
__device__ __forceinline__ std::int32_t largest_bits(Value value) {
  static_assert(kCount % 4 == 0);
  const auto bits = [&](int i) { return __float_as_int(value(i)); };
  std::int32_t top = max(bits(0), bits(1)), other = max(bits(2), bits(3));
  CUTE_UNROLL
  for (int i = 4; i < kCount; i += 4) {
    top = __vimax3_s32(top, bits(i), bits(i + 1));
    other = __vimax3_s32(other, bits(i + 2), bits(i + 3));
  }
  return max(top, other);
}

/// Whether largest_bits are those of the largest number.
__device__ __forceinline__ bool is_positive_number(std::int32_t bits) {
  constexpr std::uint32_t kInfinity = 0x7f800000;
  return static_cast<std::uint32_t>(bits) <= kInfinity;
}

/// The largest of value(i), i < kCount, all of negative sign; NaN only where there is nothing else.
template <int kCount, class Value>
__device__ __forceinline__ float largest_negative(Value value) {
  const auto bits = [&](int i) { return __float_as_int(value(i)); };
  std::int32_t low = min(bits(0), bits(1));
  CUTE_UNROLL
  for (int i = 2; i < kCount; i += 2) low = __vimin3_s32(low, bits(i), bits(i + 1));
  return __int_as_float(low);
}

}  // namespace openmsa::cuda::sm90
