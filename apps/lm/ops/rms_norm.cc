#include "lm/ops/rms_norm.h"

#include <cmath>
#include <vector>

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {
namespace {

constexpr std::int64_t kChunk = 256;

float inverse_rms(const NormShape& shape, const float* x) {
  return 1.0f / std::sqrt(row_ops().sum_of_squares(shape.dim, x) / static_cast<float>(shape.dim) + shape.eps);
}

}  // namespace

void rms_norm(const NormShape& shape, const float* x, const float* w, float* y) {
  parallel_chunks(shape.rows, kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float* x_row = x + row * shape.dim;
      row_ops().norm(shape.dim, x_row, inverse_rms(shape, x_row), w, y + row * shape.dim);
    }
  });
}

void rms_norm_backward(const NormShape& shape, const float* x, const float* w, const float* d_y, float* d_x, float* d_w,
                       Write write) {
  const std::int64_t dim = shape.dim;
  std::vector<float> partial(static_cast<std::size_t>(num_chunks(shape.rows, kChunk) * dim), 0.0f);
  parallel_chunks(shape.rows, kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float *x_row = x + row * dim, *d_y_row = d_y + row * dim;
      const float r = inverse_rms(shape, x_row);
      const float dot =
          row_ops().norm_backward_weight(dim, x_row, r, w, d_y_row, partial.data() + begin / kChunk * dim);
      row_ops().norm_backward_input(dim, x_row, r, w, d_y_row, dot / static_cast<float>(dim), d_x + row * dim,
                                    write == Write::kAdd);
    }
  });
  for (std::size_t i = 0; i < partial.size(); ++i) d_w[i % static_cast<std::size_t>(dim)] += partial[i];
}

}  // namespace openmsa::lm
