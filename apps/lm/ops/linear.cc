#include "lm/ops/linear.h"

#include <vector>

#include "lm/ops/blas.h"
#include "lm/ops/parallel.h"
#include "lm/ops/profile.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {
namespace {

// Rows of the result per BLAS call. The calls run in parallel, each on one thread: BLAS threads of their own would
// compete with oneTBB's for the cores, and fixed chunks make results independent of the number of threads.
constexpr std::int64_t kTokenChunk = 256;
constexpr std::int64_t kWeightChunk = 64;

float beta(Write write) { return write == Write::kAdd ? 1.0f : 0.0f; }

blasint blas(std::int64_t size) { return static_cast<blasint>(size); }

/// y[t,o] = sum_i x[t,i] w[o,i] for rows of y that are `row_size` wide; one BLAS call.
void product(const LinearShape& shape, const float* x, const float* w, float* y, std::int64_t row_size, Write write) {
  open_blas().sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, blas(shape.tokens), blas(shape.out), blas(shape.in), 1.0f,
                    x, blas(shape.in), w, blas(shape.in), beta(write), y, blas(row_size));
}

void linear_fp32(const LinearShape& shape, const float* x, const float* w, float* y, std::int64_t row_size,
                 Write write) {
  parallel_chunks(shape.tokens, kTokenChunk, [&](std::int64_t begin, std::int64_t end) {
    product({end - begin, shape.in, shape.out}, x + begin * shape.in, w, y + begin * row_size, row_size, write);
  });
}

// ---------------------------------------------------------------------------------------- bf16 weights
// Such weights stay bf16 in memory, and are widened panel by panel, in cache.

constexpr std::int64_t kPanel = 64;     // rows of w; 6144 channels of them are 1.5 MiB of fp32
constexpr std::int64_t kFewTokens = 4;  // so few read w directly: widening would cost more than the products

/// y[t,o] = bf16(sum_i x[t,i] w[o,i]), or bf16(y[t,o] + bf16(sum ...)), for a panel of rows of w.
void few_tokens_by_panel(const LinearShape& panel, const float* x, const io::BFloat16* w, float* y,
                         std::int64_t row_size, bool add) {
  float sums[kPanel];
  for (std::int64_t t = 0; t < panel.tokens; ++t) {
    for (std::int64_t o = 0; o < panel.out; ++o) {
      sums[o] = row_ops().dot_bf16(panel.in, w + o * panel.in, x + t * panel.in);
    }
    row_ops().store_bf16(panel.out, sums, y + t * row_size, add);
  }
}

void many_tokens_by_panel(const LinearShape& panel, const float* x, const io::BFloat16* w, float* y,
                          std::int64_t row_size, bool add) {
  std::vector<float> widened(static_cast<std::size_t>(panel.out * panel.in));
  std::vector<float> sums(static_cast<std::size_t>(std::min(kTokenChunk, panel.tokens) * panel.out));
  row_ops().widen(panel.out * panel.in, w, widened.data());
  for (std::int64_t begin = 0; begin < panel.tokens; begin += kTokenChunk) {
    const std::int64_t tokens = std::min(kTokenChunk, panel.tokens - begin);
    product({tokens, panel.in, panel.out}, x + begin * panel.in, widened.data(), sums.data(), panel.out,
            Write::kOverwrite);
    for (std::int64_t t = 0; t < tokens; ++t) {
      row_ops().store_bf16(panel.out, sums.data() + t * panel.out, y + (begin + t) * row_size, add);
    }
  }
}

void linear_bf16(const LinearShape& shape, const float* x, const io::BFloat16* w, float* y, std::int64_t row_size,
                 Write write) {
  const auto by_panel = shape.tokens <= kFewTokens ? few_tokens_by_panel : many_tokens_by_panel;
  parallel_chunks(shape.out, kPanel, [&](std::int64_t begin, std::int64_t end) {
    by_panel({shape.tokens, shape.in, end - begin}, x, w + begin * shape.in, y + begin, row_size, write == Write::kAdd);
  });
}

}  // namespace

void linear(const LinearShape& shape, const float* x, const WeightMatrix& w, float* y, Write write) {
  for (const WeightBlock& block : w.blocks) {
    const LinearShape part{shape.tokens, shape.in, block.rows};
    if (block.fp32) {
      linear_fp32(part, x, block.fp32, y, shape.out, write);
    } else {
      linear_bf16(part, x, block.bf16, y, shape.out, write);
    }
    y += block.rows;
  }
}

void linear(const LinearShape& shape, const float* x, const float* w, float* y, Write write) {
  const TimedPart timed(Part::kProducts);
  linear_fp32(shape, x, w, y, shape.out, write);
}

void linear_backward_input(const LinearShape& shape, const float* d_y, const float* w, float* d_x, Write write) {
  const TimedPart timed(Part::kProducts);
  parallel_chunks(shape.tokens, kTokenChunk, [&](std::int64_t begin, std::int64_t end) {
    open_blas().sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas(end - begin), blas(shape.in), blas(shape.out),
                      1.0f, d_y + begin * shape.out, blas(shape.out), w, blas(shape.in), beta(write),
                      d_x + begin * shape.in, blas(shape.in));
  });
}

void linear_backward_weight(const LinearShape& shape, const float* d_y, const float* x, float* d_w) {
  const TimedPart timed(Part::kProducts);
  parallel_chunks(shape.out, kWeightChunk, [&](std::int64_t begin, std::int64_t end) {
    open_blas().sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, blas(end - begin), blas(shape.in), blas(shape.tokens),
                      1.0f, d_y + begin, blas(shape.out), x, blas(shape.in), 1.0f, d_w + begin * shape.in,
                      blas(shape.in));
  });
}

}  // namespace openmsa::lm
