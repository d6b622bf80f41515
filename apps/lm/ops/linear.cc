#include "lm/ops/linear.h"

#include <cblas.h>

#include "lm/ops/linear_bf16.h"
#include "lm/ops/parallel.h"
#include "lm/ops/profile.h"

namespace openmsa::lm {
namespace {

// Rows of the result per BLAS call. The calls run in parallel, each on one thread: BLAS threads of their own would
// compete with oneTBB's for the cores, and fixed chunks make results independent of the number of threads.
constexpr std::int64_t kTokenChunk = 256;
constexpr std::int64_t kWeightChunk = 64;

float beta(Write write) { return write == Write::kAdd ? 1.0f : 0.0f; }

blasint blas(std::int64_t size) { return static_cast<blasint>(size); }

/// Into columns of y, whose rows are `row_size` wide.
void multiply(const LinearShape& shape, const float* x, const float* w, float* y, std::int64_t row_size, Write write) {
  parallel_chunks(shape.tokens, kTokenChunk, [&](std::int64_t begin, std::int64_t end) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, blas(end - begin), blas(shape.out), blas(shape.in), 1.0f,
                x + begin * shape.in, blas(shape.in), w, blas(shape.in), beta(write), y + begin * row_size,
                blas(row_size));
  });
}

void use_one_blas_thread() {
  [[maybe_unused]] static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
}

}  // namespace

void linear(const LinearShape& shape, const float* x, const WeightMatrix& w, float* y, Write write) {
  use_one_blas_thread();
  for (const WeightBlock& block : w.blocks) {
    const LinearShape part{shape.tokens, shape.in, block.rows};
    if (block.fp32) {
      multiply(part, x, block.fp32, y, shape.out, write);
    } else {
      linear_bf16(part, x, block.bf16, y, shape.out, write);
    }
    y += block.rows;
  }
}

void linear(const LinearShape& shape, const float* x, const float* w, float* y, Write write) {
  const TimedPart timed(Part::kProducts);
  use_one_blas_thread();
  multiply(shape, x, w, y, shape.out, write);
}

void linear_backward_input(const LinearShape& shape, const float* d_y, const float* w, float* d_x, Write write) {
  const TimedPart timed(Part::kProducts);
  use_one_blas_thread();
  parallel_chunks(shape.tokens, kTokenChunk, [&](std::int64_t begin, std::int64_t end) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas(end - begin), blas(shape.in), blas(shape.out), 1.0f,
                d_y + begin * shape.out, blas(shape.out), w, blas(shape.in), beta(write), d_x + begin * shape.in,
                blas(shape.in));
  });
}

void linear_backward_weight(const LinearShape& shape, const float* d_y, const float* x, float* d_w) {
  const TimedPart timed(Part::kProducts);
  use_one_blas_thread();
  parallel_chunks(shape.out, kWeightChunk, [&](std::int64_t begin, std::int64_t end) {
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, blas(end - begin), blas(shape.in), blas(shape.tokens), 1.0f,
                d_y + begin, blas(shape.out), x, blas(shape.in), 1.0f, d_w + begin * shape.in, blas(shape.in));
  });
}

}  // namespace openmsa::lm
