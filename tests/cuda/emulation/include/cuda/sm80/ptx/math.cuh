// The portable kernels' approximate functions: subnormal numbers count as 0.
#pragma once

#include <cmath>

#include "cuda_runtime.h"

namespace openmsa::cuda::sm80 {

inline float without_subnormal(float x) { return std::fabs(x) < 0x1p-126f ? 0.0f : x; }
inline float exp2_approx(float x) { return without_subnormal(std::exp2(without_subnormal(x))); }
inline float log2_approx(float x) { return std::log2(without_subnormal(x)); }

}  // namespace openmsa::cuda::sm80
