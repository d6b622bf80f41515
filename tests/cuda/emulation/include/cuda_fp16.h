// fp16 as CUDA spells it.
#pragma once

#include "core/dtype.h"
#include "cuda_runtime.h"

struct __half {
  std::uint16_t bits;
  __half() = default;
  __half(float x) : bits(openmsa::core::to_float16(x).bits) {}
  operator float() const { return openmsa::core::to_float(openmsa::core::Float16{bits}); }
};
struct __half2 {
  __half x, y;
} __align__(4);
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline float2 __half22float2(__half2 two) { return {two.x, two.y}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {float{a.x} * float{b.x}, float{a.y} * float{b.y}}; }
