// Partial rotary position embedding: the first rotary_dim channels of each head turn by an angle that grows with the
// token's position; the others pass.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lm/model/config.h"
#include "lm/ops/precision.h"

namespace openmsa::lm {

class RotaryTable {
 public:
  explicit RotaryTable(const ModelConfig& config);

  /// Makes positions below `count` available to rotate.
  void reserve(std::int64_t count);

  /// x [positions.size(), heads, head_dim] in place, with half = rotary_dim / 2, angle = position *
  /// rope_theta^(-c/half):
  ///   (x[c], x[c + half]) -> (x[c] cos - x[c + half] sin, x[c + half] cos + x[c] sin),  c < half
  /// With kBf16, cos, sin, products and sums are rounded.
  void rotate(Precision precision, float* x, std::int64_t heads, std::int64_t head_dim,
              std::span<const std::int32_t> positions) const;

  /// The inverse, which is also the gradient of rotate.
  void rotate_back(float* x, std::int64_t heads, std::int64_t head_dim, std::span<const std::int32_t> positions) const;

 private:
  template <class RotateRow>
  void apply(float* x, std::int64_t heads, std::int64_t head_dim, std::span<const std::int32_t> positions,
             const RotateRow& rotate_row) const;

  std::int64_t half_;
  std::int64_t count_ = 0;
  std::vector<float> frequencies_;  // [half]; fp32, and so are the angles: that is what models are trained with
  std::vector<float> cos_;          // [count, half]
  std::vector<float> sin_;
};

}  // namespace openmsa::lm
