// Element types in device memory, and pairs of them in a register.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <openmsa/openmsa.h>

#include <cstdint>
#include <type_traits>

#include "cuda/sm80/tile/e4m3.h"

namespace openmsa::cuda::sm80 {

template <openmsa_dtype kDtype>
struct ElementOf;
template <>
struct ElementOf<OPENMSA_BFLOAT16> {
  using type = __nv_bfloat16;
};
template <>
struct ElementOf<OPENMSA_FLOAT16> {
  using type = __half;
};
template <>
struct ElementOf<OPENMSA_FLOAT8_E4M3> {
  using type = __nv_fp8_e4m3;
};
template <openmsa_dtype kDtype>
using Element = typename ElementOf<kDtype>::type;

/// Two numbers, rounded; the first in the lower half.
template <class Element>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(two);
  } else {
    static_assert(std::is_same_v<Element, __half>);
    const __half2 two = __floats2half2_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(two);
  }
}

template <class Element>
__device__ __forceinline__ float2 unpack(std::uint32_t two) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(two));
  } else {
    static_assert(std::is_same_v<Element, __half>);
    return __half22float2(reinterpret_cast<const __half2&>(two));
  }
}

/// The two e4m3 numbers in the low 16 bits as fp16, which holds every one of them exactly; NaN stays NaN.
__device__ __forceinline__ std::uint32_t half_from_e4m3(std::uint32_t two) {
#if __CUDA_ARCH__ >= 890
  std::uint32_t half;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, low;}" : "=r"(half) : "r"(two));
  return half;
#else
  const SmallHalves small(two);
  constexpr std::uint32_t k256 = 0x5c005c00u;
  const __half2 half = __hmul2(reinterpret_cast<const __half2&>(small.halves), reinterpret_cast<const __half2&>(k256));
  return reinterpret_cast<const std::uint32_t&>(half) | small.nan;
#endif
}

}  // namespace openmsa::cuda::sm80
