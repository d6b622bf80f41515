#include "lm/ops/swiglu.h"

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {
namespace {

constexpr std::int64_t kChunk = 32;

}  // namespace

void swiglu(const SwigluShape& shape, Precision precision, const float* gate_up, float* y) {
  const auto activate = precision == Precision::kBf16 ? row_ops().swiglu_bf16 : row_ops().swiglu;
  const std::int64_t size = shape.intermediate;
  parallel_chunks(shape.tokens, kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* gate = gate_up + t * 2 * size;
      activate(size, shape.alpha, shape.limit, gate, gate + size, y + t * size);
    }
  });
}

void swiglu_backward(const SwigluShape& shape, const float* gate_up, const float* d_y, float* d_gate_up) {
  const std::int64_t size = shape.intermediate;
  parallel_chunks(shape.tokens, kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* gate = gate_up + t * 2 * size;
      float* d_gate = d_gate_up + t * 2 * size;
      row_ops().swiglu_backward(size, shape.alpha, shape.limit, gate, gate + size, d_y + t * size, d_gate,
                                d_gate + size);
    }
  });
}

}  // namespace openmsa::lm
