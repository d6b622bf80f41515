// Gemma's RMS norm: y = x / rms(x) * (1 + w), over rows of `dim` channels.
#pragma once

#include <cstdint>

#include "lm/ops/linear.h"

namespace openmsa::lm {

struct NormShape {
  std::int64_t rows;
  std::int64_t dim;
  float eps;
};

/// y[t] = x[t] * r (1 + w),  r = 1 / sqrt(mean_c x[t,c]^2 + eps).  y may be x.
void rms_norm(const NormShape& shape, const float* x, const float* w, float* y);

/// With x' = x r and g = d_y (1 + w):  d_x = r (g - x' mean_c(x' g)),  d_w += sum_t d_y x'.
/// d_x may be d_y.
void rms_norm_backward(const NormShape& shape, const float* x, const float* w, const float* d_y, float* d_x, float* d_w,
                       Write write = Write::kOverwrite);

}  // namespace openmsa::lm
