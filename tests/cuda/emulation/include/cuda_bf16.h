// bf16 as CUDA spells it.
#pragma once

#include "core/dtype.h"
#include "cuda_runtime.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) : bits(openmsa::core::to_bfloat16(x).bits) {}
  operator float() const { return openmsa::core::to_float(openmsa::core::BFloat16{bits}); }
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
} __align__(4);
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 two) { return {two.x, two.y}; }
