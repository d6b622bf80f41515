// The clamped SwiGLU between the two products of an MLP.
#pragma once

#include <cstdint>

#include "lm/ops/precision.h"

namespace openmsa::lm {

struct SwigluShape {
  std::int64_t tokens;
  std::int64_t intermediate;
  float alpha;
  float limit;
};

/// gate_up [tokens, 2 * intermediate] holds gate, then up, of each token. With g = min(gate, limit) and
/// u = clamp(up, -limit, limit):   y = (u + 1) g sigmoid(alpha g)          y [tokens, intermediate]
void swiglu(const SwigluShape& shape, Precision precision, const float* gate_up, float* y);

/// d_gate_up from d_y, 0 where the clamps hold.
void swiglu_backward(const SwigluShape& shape, const float* gate_up, const float* d_y, float* d_gate_up);

}  // namespace openmsa::lm
