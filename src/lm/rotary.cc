#include "lm/rotary.h"

#include <cmath>

#include "lm/parallel.h"
#include "lm/simd.h"

namespace openmsa::lm {
namespace {

OPENMSA_VECTOR_CLONES void rotate_heads(float* x, std::int64_t heads, std::int64_t head_dim, std::int64_t half,
                                        const float* cosines, const float* sines, float direction) {
  for (std::int64_t head = 0; head < heads; ++head) {
    float* first = x + head * head_dim;
    float* second = first + half;
#pragma omp simd
    for (std::int64_t c = 0; c < half; ++c) {
      const float sine = direction * sines[c];
      const float a = first[c];
      const float b = second[c];
      first[c] = a * cosines[c] - b * sine;
      second[c] = b * cosines[c] + a * sine;
    }
  }
}

/// To 8 significant bits, ties to even: bf16, but for its limits of magnitude.
double round_to_bf16(double value) {
  int exponent;
  const double mantissa = std::frexp(value, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8);
}

}  // namespace

RotaryTable::RotaryTable(const ModelConfig& config) : half_(config.rotary_dim / 2) {
  for (std::int64_t c = 0; c < half_; ++c) {
    const double frequency = std::pow(config.rope_theta, -static_cast<double>(c) / static_cast<double>(half_));
    frequencies_.push_back(config.bf16_rope_frequencies ? round_to_bf16(frequency) : frequency);
  }
}

void RotaryTable::reserve(std::int64_t count) {
  if (count <= count_) return;
  cos_.resize(static_cast<std::size_t>(count * half_));
  sin_.resize(cos_.size());
  for (std::int64_t position = count_; position < count; ++position) {
    for (std::int64_t c = 0; c < half_; ++c) {
      const double angle = static_cast<double>(position) * frequencies_[static_cast<std::size_t>(c)];
      cos_[static_cast<std::size_t>(position * half_ + c)] = static_cast<float>(std::cos(angle));
      sin_[static_cast<std::size_t>(position * half_ + c)] = static_cast<float>(std::sin(angle));
    }
  }
  count_ = count;
}

void RotaryTable::rotate(float* x, std::int64_t heads, std::int64_t head_dim,
                         std::span<const std::int32_t> positions) const {
  apply(x, heads, head_dim, positions, 1.0f);
}

void RotaryTable::rotate_back(float* x, std::int64_t heads, std::int64_t head_dim,
                              std::span<const std::int32_t> positions) const {
  apply(x, heads, head_dim, positions, -1.0f);
}

void RotaryTable::apply(float* x, std::int64_t heads, std::int64_t head_dim, std::span<const std::int32_t> positions,
                        float direction) const {
  constexpr std::int64_t kChunk = 128;
  parallel_chunks(static_cast<std::int64_t>(positions.size()), kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t entry = positions[static_cast<std::size_t>(t)] * half_;
      rotate_heads(x + t * heads * head_dim, heads, head_dim, half_, cos_.data() + entry, sin_.data() + entry,
                   direction);
    }
  });
}

}  // namespace openmsa::lm
