// Numbers in e4m3, four to a register.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

namespace openmsa::cuda {

/// Rounded to nearest even, to 448 where they are larger.
__device__ __forceinline__ std::uint32_t to_e4m3(const float (&x)[4]) {
  std::uint32_t packed = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    packed |= static_cast<std::uint32_t>(__nv_cvt_float_to_fp8(x[i], __NV_SATFINITE, __NV_E4M3)) << 8 * i;
  }
  return packed;
}

}  // namespace openmsa::cuda
