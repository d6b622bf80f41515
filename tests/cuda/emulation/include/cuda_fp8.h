// e4m3 as CUDA spells it.
#pragma once

#include "core/dtype.h"
#include "cuda_runtime.h"

struct __nv_fp8_e4m3 {
  std::uint8_t bits;
};
enum __nv_saturation_t { __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3 };
inline std::uint8_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t, __nv_fp8_interpretation_t) {
  return openmsa::core::to_float8_e4m3(x).bits;
}
