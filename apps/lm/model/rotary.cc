#include "lm/model/rotary.h"

#include <cmath>

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {

RotaryTable::RotaryTable(const ModelConfig& config) : half_(config.rotary_dim / 2) {
  for (std::int64_t c = 0; c < half_; ++c) {
    const auto frequency =
        static_cast<float>(std::pow(config.rope_theta, -static_cast<double>(c) / static_cast<double>(half_)));
    frequencies_.push_back(config.bf16_rope_frequencies ? bf16_rounded(frequency) : frequency);
  }
}

void RotaryTable::reserve(std::int64_t count) {
  if (count <= count_) return;
  cos_.resize(static_cast<std::size_t>(count * half_));
  sin_.resize(cos_.size());
  for (std::int64_t position = count_; position < count; ++position) {
    for (std::int64_t c = 0; c < half_; ++c) {
      const float product = static_cast<float>(position) * frequencies_[static_cast<std::size_t>(c)];
      const double angle = product;
      cos_[static_cast<std::size_t>(position * half_ + c)] = static_cast<float>(std::cos(angle));
      sin_[static_cast<std::size_t>(position * half_ + c)] = static_cast<float>(std::sin(angle));
    }
  }
  count_ = count;
}

/// rotate_row(x, cosines, sines) of every head, with the angles of its token.
template <class RotateRow>
void RotaryTable::apply(float* x, std::int64_t heads, std::int64_t head_dim, std::span<const std::int32_t> positions,
                        const RotateRow& rotate_row) const {
  constexpr std::int64_t kChunk = 128;
  parallel_chunks(std::ssize(positions), kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t entry = positions[static_cast<std::size_t>(t)] * half_;
      for (std::int64_t head = t * heads; head < (t + 1) * heads; ++head) {
        rotate_row(x + head * head_dim, cos_.data() + entry, sin_.data() + entry);
      }
    }
  });
}

void RotaryTable::rotate(Precision precision, float* x, std::int64_t heads, std::int64_t head_dim,
                         std::span<const std::int32_t> positions) const {
  const RowOps& ops = row_ops();
  apply(x, heads, head_dim, positions, [&](float* row, const float* cosines, const float* sines) {
    if (precision == Precision::kBf16) {
      ops.rotate_bf16(half_, row, cosines, sines);
    } else {
      ops.rotate(half_, row, cosines, sines, 1);
    }
  });
}

void RotaryTable::rotate_back(float* x, std::int64_t heads, std::int64_t head_dim,
                              std::span<const std::int32_t> positions) const {
  const RowOps& ops = row_ops();
  apply(x, heads, head_dim, positions,
        [&](float* row, const float* cosines, const float* sines) { ops.rotate(half_, row, cosines, sines, -1); });
}

}  // namespace openmsa::lm
