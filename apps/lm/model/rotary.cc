#include "lm/model/rotary.h"

#include <cmath>

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {
namespace {

[[gnu::always_inline]] inline void turn(float* x, std::int64_t half, const float* cosines, const float* sines,
                                        float direction) {
  float* second = x + half;
#pragma omp simd
  for (std::int64_t c = 0; c < half; ++c) {
    const float sine = direction * sines[c];
    const float a = x[c];
    const float b = second[c];
    x[c] = a * cosines[c] - b * sine;
    second[c] = b * cosines[c] + a * sine;
  }
}

OPENMSA_VECTOR_CLONES void rotate_heads(float* x, std::int64_t heads, std::int64_t head_dim, std::int64_t half,
                                        const float* cosines, const float* sines) {
  for (std::int64_t head = 0; head < heads; ++head) turn(x + head * head_dim, half, cosines, sines, 1.0f);
}

OPENMSA_VECTOR_CLONES void rotate_heads_back(float* x, std::int64_t heads, std::int64_t head_dim, std::int64_t half,
                                             const float* cosines, const float* sines) {
  for (std::int64_t head = 0; head < heads; ++head) turn(x + head * head_dim, half, cosines, sines, -1.0f);
}

OPENMSA_VECTOR_CLONES void rotate_heads_bf16(float* x, std::int64_t heads, std::int64_t head_dim, std::int64_t half,
                                             const float* cosines, const float* sines) {
  for (std::int64_t head = 0; head < heads; ++head, x += head_dim) {
    float* second = x + half;
#pragma omp simd
    for (std::int64_t c = 0; c < half; ++c) {
      const float cosine = bf16_rounded(cosines[c]);
      const float sine = bf16_rounded(sines[c]);
      const float a = x[c];
      const float b = second[c];
      x[c] = bf16_rounded(bf16_rounded(a * cosine) - bf16_rounded(b * sine));
      second[c] = bf16_rounded(bf16_rounded(b * cosine) + bf16_rounded(a * sine));
    }
  }
}

}  // namespace

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

template <class RotateHeads>
void RotaryTable::apply(float* x, std::int64_t heads, std::int64_t head_dim, std::span<const std::int32_t> positions,
                        const RotateHeads& rotate_heads) const {
  constexpr std::int64_t kChunk = 128;
  parallel_chunks(static_cast<std::int64_t>(positions.size()), kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t entry = positions[static_cast<std::size_t>(t)] * half_;
      rotate_heads(x + t * heads * head_dim, heads, head_dim, half_, cos_.data() + entry, sin_.data() + entry);
    }
  });
}

void RotaryTable::rotate(Precision precision, float* x, std::int64_t heads, std::int64_t head_dim,
                         std::span<const std::int32_t> positions) const {
  apply(x, heads, head_dim, positions, precision == Precision::kBf16 ? rotate_heads_bf16 : rotate_heads);
}

void RotaryTable::rotate_back(float* x, std::int64_t heads, std::int64_t head_dim,
                              std::span<const std::int32_t> positions) const {
  apply(x, heads, head_dim, positions, rotate_heads_back);
}

}  // namespace openmsa::lm
