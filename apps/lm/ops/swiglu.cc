#include "lm/ops/swiglu.h"

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {
namespace {

constexpr std::int64_t kChunk = 32;

[[gnu::always_inline]] inline float least(float a, float b) { return a < b ? a : b; }
[[gnu::always_inline]] inline float clamp(float x, float limit) { return least(-least(-x, limit), limit); }

OPENMSA_VECTOR_CLONES void activate(std::int64_t size, float alpha, float limit, const float* __restrict gate,
                                    const float* __restrict up, float* __restrict y) {
  for (std::int64_t c = 0; c < size; ++c) {
    const float g = least(gate[c], limit);
    y[c] = (clamp(up[c], limit) + 1.0f) * g / (1.0f + vector_exp(-alpha * g));
  }
}

/// The same with a rounding after each of the five operations that PyTorch runs one by one.
OPENMSA_VECTOR_CLONES void activate_bf16(std::int64_t size, float alpha, float limit, const float* __restrict gate,
                                         const float* __restrict up, float* __restrict y) {
  for (std::int64_t c = 0; c < size; ++c) {
    const float g = least(gate[c], limit);
    const float sigmoid = bf16_rounded(1.0f / (1.0f + vector_exp(-bf16_rounded(alpha * g))));
    y[c] = bf16_rounded(bf16_rounded(clamp(up[c], limit) + 1.0f) * bf16_rounded(g * sigmoid));
  }
}

OPENMSA_VECTOR_CLONES void activate_backward(std::int64_t size, float alpha, float limit, const float* __restrict gate,
                                             const float* __restrict up, const float* __restrict d_y,
                                             float* __restrict d_gate, float* __restrict d_up) {
  for (std::int64_t c = 0; c < size; ++c) {
    const float g = least(gate[c], limit);
    const float u = clamp(up[c], limit);
    const float sigmoid = 1.0f / (1.0f + vector_exp(-alpha * g));
    const float slope = sigmoid * (1.0f + alpha * g * (1.0f - sigmoid));  // of g sigmoid(alpha g)
    d_gate[c] = d_y[c] * (u + 1.0f) * slope * (g == gate[c] ? 1.0f : 0.0f);
    d_up[c] = d_y[c] * g * sigmoid * (u == up[c] ? 1.0f : 0.0f);
  }
}

}  // namespace

void swiglu(const SwigluShape& shape, Precision precision, const float* gate_up, float* y) {
  const auto activate_row = precision == Precision::kBf16 ? activate_bf16 : activate;
  const std::int64_t size = shape.intermediate;
  parallel_chunks(shape.tokens, kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* gate = gate_up + t * 2 * size;
      activate_row(size, shape.alpha, shape.limit, gate, gate + size, y + t * size);
    }
  });
}

void swiglu_backward(const SwigluShape& shape, const float* gate_up, const float* d_y, float* d_gate_up) {
  const std::int64_t size = shape.intermediate;
  parallel_chunks(shape.tokens, kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* gate = gate_up + t * 2 * size;
      float* d_gate = d_gate_up + t * 2 * size;
      activate_backward(size, shape.alpha, shape.limit, gate, gate + size, d_y + t * size, d_gate, d_gate + size);
    }
  });
}

}  // namespace openmsa::lm
