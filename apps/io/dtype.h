// The library's element types in these programs: names as options and reports give them, and the two 16-bit floats.
#pragma once

#include <openmsa/openmsa.h>

#include <bit>
#include <cstdint>
#include <string_view>

namespace openmsa::io {

struct BFloat16 {
  std::uint16_t bits;
};

struct Float16 {
  std::uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(double x) { return static_cast<float>(x); }

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

/// The float type of that name; OPENMSA_INT32 where there is none.
inline openmsa_dtype dtype_of_name(std::string_view name) {
  for (openmsa_dtype dtype :
       {OPENMSA_FLOAT32, OPENMSA_BFLOAT16, OPENMSA_FLOAT16, OPENMSA_FLOAT64, OPENMSA_FLOAT8_E4M3}) {
    if (dtype_name(dtype) == name) return dtype;
  }
  return OPENMSA_INT32;
}

}  // namespace openmsa::io
