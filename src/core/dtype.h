// bf16 and fp16 as storage types, and the step from a run-time dtype to a C++ type.
#pragma once

#include <openmsa/openmsa.h>

#include <bit>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace openmsa::core {

struct BFloat16 {
  std::uint16_t bits;
};

struct Float16 {
  std::uint16_t bits;
};

inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }

inline float to_float(BFloat16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }

inline float to_float(Float16 x) {
  const std::uint32_t sign = std::uint32_t{x.bits & 0x8000u} << 16;
  const std::uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // Inf, NaN
    return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  // The exponent bias is 15 in fp16 and 127 in fp32; multiplying by 2^112 moves it and normalises subnormals.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(scaled));
}

/// Rounds to nearest even; NaN stays NaN.
inline BFloat16 to_bfloat16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

/// Rounds to nearest even; overflow becomes Inf, NaN stays NaN.
inline Float16 to_float16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and more
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal, rounded by an addition in units of 2^-24
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

/// One rounding from the compute type to the storage type T.
template <class T, class Compute>
T round_to(Compute x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(static_cast<float>(x));
  } else if constexpr (std::is_same_v<T, Float16>) {
    return to_float16(static_cast<float>(x));
  } else {
    return static_cast<T>(x);
  }
}

/// Calls `visitor` with a value of the C++ type that a float dtype stands for.
template <class Visitor>
decltype(auto) visit_dtype(openmsa_dtype dtype, Visitor&& visitor) {
  switch (dtype) {
    case OPENMSA_BFLOAT16:
      return std::forward<Visitor>(visitor)(BFloat16{});
    case OPENMSA_FLOAT16:
      return std::forward<Visitor>(visitor)(Float16{});
    case OPENMSA_FLOAT64:
      return std::forward<Visitor>(visitor)(double{});
    default:
      return std::forward<Visitor>(visitor)(float{});
  }
}

}  // namespace openmsa::core
