// Linear layers with bf16 weights, which stay bf16 in memory: they are widened panel by panel, in cache.
#pragma once

#include "lm/ops/linear.h"

namespace openmsa::lm {

/// y[t,o] = bf16(sum_i x[t,i] w[o,i]), or bf16(y[t,o] + bf16(sum ...)) with kAdd; rows of y are `row_size` wide.
void linear_bf16(const LinearShape& shape, const float* x, const core::BFloat16* w, float* y, std::int64_t row_size,
                 Write write);

}  // namespace openmsa::lm
