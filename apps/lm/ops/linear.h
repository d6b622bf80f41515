// Linear layers without bias through BLAS. All matrices are row-major and contiguous; w is [out, in].
#pragma once

#include <cstdint>

#include "lm/ops/weight_matrix.h"

namespace openmsa::lm {

enum class Write { kOverwrite, kAdd };

struct LinearShape {
  std::int64_t tokens;
  std::int64_t in;
  std::int64_t out;
};

/// y[t,o] = sum_i x[t,i] w[o,i]. Products with bf16 rows are rounded to bf16, and so is their sum with y.
void linear(const LinearShape& shape, const float* x, const WeightMatrix& w, float* y, Write write = Write::kOverwrite);

/// y[t,o] = sum_i x[t,i] w[o,i] for a matrix in one fp32 array.
void linear(const LinearShape& shape, const float* x, const float* w, float* y, Write write = Write::kOverwrite);

/// d_x[t,i] = sum_o d_y[t,o] w[o,i]
void linear_backward_input(const LinearShape& shape, const float* d_y, const float* w, float* d_x,
                           Write write = Write::kOverwrite);

/// d_w[o,i] += sum_t d_y[t,o] x[t,i]
void linear_backward_weight(const LinearShape& shape, const float* d_y, const float* x, float* d_w);

}  // namespace openmsa::lm
