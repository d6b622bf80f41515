// e4m3 as operands of products in 16 bits, which hold every one of its numbers exactly; NaN stays NaN.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cutlass/numeric_types.h>

#include <cstdint>
#include <type_traits>

namespace openmsa::cuda::sm90 {

/// The two e4m3 numbers in the low 16 bits, or in the high ones (PTX ISA, "Data Movement and Conversion Instructions":
/// cvt).
template <class Element, int kUpper = 0>
__device__ __forceinline__ std::uint32_t from_e4m3(std::uint32_t four) {
  std::uint32_t half;
  if constexpr (kUpper == 0) {
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, low;}" : "=r"(half) : "r"(four));
  } else {
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, high;}" : "=r"(half) : "r"(four));
  }
  if constexpr (std::is_same_v<Element, cutlass::half_t>) {
    return half;
  } else {
    const float2 wide = __half22float2(*reinterpret_cast<const __half2*>(&half));
    const __nv_bfloat162 narrow = __floats2bfloat162_rn(wide.x, wide.y);
    return *reinterpret_cast<const std::uint32_t*>(&narrow);
  }
}

}  // namespace openmsa::cuda::sm90
