#include "lm/ops/rms_norm.h"

#include <cmath>
#include <vector>

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {
namespace {

constexpr std::int64_t kChunk = 256;

[[gnu::always_inline]] inline float inverse_rms(const float* x, std::int64_t dim, float eps) {
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t c = 0; c < dim; ++c) squares += x[c] * x[c];
  return 1.0f / std::sqrt(squares / static_cast<float>(dim) + eps);
}

OPENMSA_VECTOR_CLONES void norm_rows(const NormShape& shape, const float* x, const float* w, float* y) {
  for (std::int64_t row = 0; row < shape.rows; ++row, x += shape.dim, y += shape.dim) {
    const float r = inverse_rms(x, shape.dim, shape.eps);
#pragma omp simd
    for (std::int64_t c = 0; c < shape.dim; ++c) y[c] = x[c] * r * (1.0f + w[c]);
  }
}

OPENMSA_VECTOR_CLONES void norm_rows_backward(const NormShape& shape, const float* x, const float* w, const float* d_y,
                                              float* d_x, float* d_w, bool add) {
  for (std::int64_t row = 0; row < shape.rows; ++row, x += shape.dim, d_y += shape.dim, d_x += shape.dim) {
    const float r = inverse_rms(x, shape.dim, shape.eps);
    float dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (std::int64_t c = 0; c < shape.dim; ++c) {
      const float product = x[c] * r * d_y[c];
      d_w[c] += product;
      dot += product * (1.0f + w[c]);
    }
    const float mean = dot / static_cast<float>(shape.dim);
#pragma omp simd
    for (std::int64_t c = 0; c < shape.dim; ++c) {
      d_x[c] = (add ? d_x[c] : 0.0f) + r * (d_y[c] * (1.0f + w[c]) - x[c] * r * mean);
    }
  }
}

}  // namespace

void rms_norm(const NormShape& shape, const float* x, const float* w, float* y) {
  parallel_chunks(shape.rows, kChunk, [&](std::int64_t begin, std::int64_t end) {
    norm_rows({end - begin, shape.dim, shape.eps}, x + begin * shape.dim, w, y + begin * shape.dim);
  });
}

void rms_norm_backward(const NormShape& shape, const float* x, const float* w, const float* d_y, float* d_x, float* d_w,
                       Write write) {
  std::vector<float> partial(static_cast<std::size_t>(num_chunks(shape.rows, kChunk) * shape.dim), 0.0f);
  parallel_chunks(shape.rows, kChunk, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t offset = begin * shape.dim;
    norm_rows_backward({end - begin, shape.dim, shape.eps}, x + offset, w, d_y + offset, d_x + offset,
                       partial.data() + begin / kChunk * shape.dim, write == Write::kAdd);
  });
  for (std::size_t i = 0; i < partial.size(); ++i) d_w[i % static_cast<std::size_t>(shape.dim)] += partial[i];
}

}  // namespace openmsa::lm
