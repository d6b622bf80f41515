// The vector code of the language model: the loops over the channels of a row, compiled by Highway for every
// instruction set, as the CPU backend's are. What calls them is plain C++.
#pragma once

#include <cstdint>

#include "io/dtype.h"

namespace openmsa::lm {

/// Scalars of one step of AdamW.
struct AdamwCoefficients {
  float beta1, beta2, eps, lr, decay;
  float m_scale, v_scale;  // 1 / (1 - beta^step)
};

struct RowOps {
  // ------------------------------------------------------------------------------------------------------ bf16

  /// result[i] = values[i]
  void (*widen)(std::int64_t count, const io::BFloat16* values, float* result);

  /// values[i] = bf16(values[i])
  void (*round_to_bf16)(std::int64_t count, float* values);

  /// y[i] = bf16(x[i]), or bf16(y[i] + bf16(x[i])) with `add`.
  void (*store_bf16)(std::int64_t count, const float* x, float* y, bool add);

  /// sum_i w[i] x[i]
  float (*dot_bf16)(std::int64_t count, const io::BFloat16* w, const float* x);

  // ------------------------------------------------------------------------------------------------------ norm

  /// sum_i x[i]^2
  float (*sum_of_squares)(std::int64_t count, const float* x);

  /// y[c] = x[c] r (1 + w[c]); y may be x.
  void (*norm)(std::int64_t dim, const float* x, float r, const float* w, float* y);

  /// With x' = x r:  d_w[c] += d_y[c] x'[c];  returns sum_c d_y[c] x'[c] (1 + w[c]).
  float (*norm_backward_weight)(std::int64_t dim, const float* x, float r, const float* w, const float* d_y,
                                float* d_w);

  /// d_x[c] = r (d_y[c] (1 + w[c]) - x[c] r mean), added to d_x with `add`; d_x may be d_y.
  void (*norm_backward_input)(std::int64_t dim, const float* x, float r, const float* w, const float* d_y, float mean,
                              float* d_x, bool add);

  // ---------------------------------------------------------------------------------------------------- rotary

  /// (x[c], x[c + half]) -> (x[c] cos - x[c + half] sin, x[c + half] cos + x[c] sin) with sin = direction * sines[c].
  void (*rotate)(std::int64_t half, float* x, const float* cosines, const float* sines, float direction);

  /// rotate() forwards, with cos, sin, products and sums rounded to bf16.
  void (*rotate_bf16)(std::int64_t half, float* x, const float* cosines, const float* sines);

  // ---------------------------------------------------------------------------------------------------- swiglu

  /// With g = min(gate, limit) and u = clamp(up, -limit, limit):  y = (u + 1) g sigmoid(alpha g)
  void (*swiglu)(std::int64_t count, float alpha, float limit, const float* gate, const float* up, float* y);

  /// swiglu() with a rounding to bf16 after each of the five operations that PyTorch runs one by one.
  void (*swiglu_bf16)(std::int64_t count, float alpha, float limit, const float* gate, const float* up, float* y);

  /// d_gate and d_up from d_y, 0 where the clamps hold.
  void (*swiglu_backward)(std::int64_t count, float alpha, float limit, const float* gate, const float* up,
                          const float* d_y, float* d_gate, float* d_up);

  // -------------------------------------------------------------------------------------------------- training

  /// row[c] = softmax(row)[c] * scale; returns log sum_c exp(row[c]).
  double (*scaled_softmax)(std::int64_t count, float* row, float scale);

  /// One step of AdamW from the gradient g, see adamw_step.
  void (*adamw)(std::int64_t count, const AdamwCoefficients& c, const float* g, float* m, float* v, float* w);

  /// x[i] = factor * x[i]
  void (*scale)(std::int64_t count, float factor, float* x);
};

/// The functions for the best instruction set of this machine.
const RowOps& row_ops();

}  // namespace openmsa::lm
