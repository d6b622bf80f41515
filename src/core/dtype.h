// bf16, fp16 and fp8 as storage types, and the step from a run-time dtype to a C++ type or a name.
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

/// e4m3fn of OCP: bias 7, no Inf.
struct Float8E4M3 {
  std::uint8_t bits;
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

inline float to_float(Float8E4M3 x) {
  const std::uint32_t sign = std::uint32_t{x.bits & 0x80u} << 24;
  const std::uint32_t magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  const float scaled = std::bit_cast<float>(magnitude << 20) * 0x1p120f;  // as for fp16, from bias 7 to 127
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

/// Rounds to nearest even; what is larger than 448, Inf too, becomes 448. Every NaN becomes 0x7f, as on the GPU.
inline Float8E4M3 to_float8_e4m3(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = bits >> 24 & 0x80u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7f};
  std::uint32_t byte;
  if (magnitude >= 0x43e00000u) {  // 448 and more
    byte = 0x7eu;
  } else if (magnitude < 0x3c800000u) {  // below 2^-6: subnormal, rounded by an addition in units of 2^-9
    byte = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) - 0x46800000u;
  } else {
    byte = (magnitude - 0x3c000000u + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  }
  return {static_cast<std::uint8_t>(sign | byte)};
}

/// One rounding from the compute type to the storage type T.
template <class T, class Compute>
T round_to(Compute x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return to_bfloat16(static_cast<float>(x));
  } else if constexpr (std::is_same_v<T, Float16>) {
    return to_float16(static_cast<float>(x));
  } else if constexpr (std::is_same_v<T, Float8E4M3>) {
    return to_float8_e4m3(static_cast<float>(x));
  } else {
    return static_cast<T>(x);
  }
}

inline const char* dtype_name(openmsa_dtype dtype) {
  switch (dtype) {
    case OPENMSA_FLOAT32:
      return "fp32";
    case OPENMSA_BFLOAT16:
      return "bf16";
    case OPENMSA_FLOAT16:
      return "fp16";
    case OPENMSA_FLOAT64:
      return "fp64";
    case OPENMSA_INT32:
      return "int32";
    case OPENMSA_FLOAT8_E4M3:
      return "e4m3";
    case OPENMSA_INT64:
      return "int64";
  }
  return "no dtype";
}

/// Calls `visitor` with a value of the C++ type that a float dtype stands for.
template <class Visitor>
decltype(auto) visit_dtype(openmsa_dtype dtype, Visitor&& visitor) {
  switch (dtype) {
    case OPENMSA_BFLOAT16:
      return std::forward<Visitor>(visitor)(BFloat16{});
    case OPENMSA_FLOAT16:
      return std::forward<Visitor>(visitor)(Float16{});
    case OPENMSA_FLOAT8_E4M3:
      return std::forward<Visitor>(visitor)(Float8E4M3{});
    case OPENMSA_FLOAT64:
      return std::forward<Visitor>(visitor)(double{});
    default:
      return std::forward<Visitor>(visitor)(float{});
  }
}

}  // namespace openmsa::core
