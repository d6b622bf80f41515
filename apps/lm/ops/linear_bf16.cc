#include "lm/ops/linear_bf16.h"

#include <cblas.h>

#include <vector>

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {
namespace {

constexpr std::int64_t kPanel = 64;        // rows of w; 6144 channels of them are 1.5 MiB of fp32
constexpr std::int64_t kTokenChunk = 256;  // tokens per product
constexpr std::int64_t kFewTokens = 4;     // so few read w directly: widening would cost more than the products

[[gnu::always_inline]] inline float widened(const core::BFloat16& value) {
  const std::uint32_t bits = std::uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);  // GCC 12 does not vectorise a loop with std::bit_cast
  return result;
}

OPENMSA_VECTOR_CLONES void widen(std::int64_t count, const core::BFloat16* values, float* result) {
  for (std::int64_t i = 0; i < count; ++i) result[i] = widened(values[i]);
}

OPENMSA_VECTOR_CLONES void dot_rows(std::int64_t rows, std::int64_t in, const core::BFloat16* w, const float* x,
                                    float* result) {
  for (std::int64_t row = 0; row < rows; ++row, w += in) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = 0; i < in; ++i) sum += widened(w[i]) * x[i];
    result[row] = sum;
  }
}

OPENMSA_VECTOR_CLONES void store(std::int64_t count, const float* product, float* y, bool add) {
  for (std::int64_t o = 0; o < count; ++o) {
    const float rounded = bf16_rounded(product[o]);
    y[o] = add ? bf16_rounded(y[o] + rounded) : rounded;
  }
}

/// One thread's memory.
struct Scratch {
  std::vector<float> panel;    // [kPanel, in]
  std::vector<float> product;  // [kTokenChunk, kPanel]
};

/// product[t,o] for `tokens` rows of x and all rows of the widened panel.
void multiply(std::int64_t tokens, std::int64_t in, std::int64_t rows, const float* x, Scratch& scratch) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<blasint>(tokens), static_cast<blasint>(rows),
              static_cast<blasint>(in), 1.0f, x, static_cast<blasint>(in), scratch.panel.data(),
              static_cast<blasint>(in), 0.0f, scratch.product.data(), static_cast<blasint>(rows));
}

/// All tokens with `rows` rows of w.
void multiply_panel(const LinearShape& shape, std::int64_t rows, const float* x, const core::BFloat16* w, float* y,
                    std::int64_t row_size, bool add, Scratch& scratch) {
  const bool few = shape.tokens <= kFewTokens;
  if (!few) {
    scratch.panel.resize(static_cast<std::size_t>(kPanel * shape.in));
    widen(rows * shape.in, w, scratch.panel.data());
  }
  const std::int64_t chunk = few ? 1 : kTokenChunk;
  scratch.product.resize(static_cast<std::size_t>(chunk * kPanel));
  for (std::int64_t begin = 0; begin < shape.tokens; begin += chunk) {
    const std::int64_t tokens = std::min(chunk, shape.tokens - begin);
    if (few) {
      dot_rows(rows, shape.in, w, x + begin * shape.in, scratch.product.data());
    } else {
      multiply(tokens, shape.in, rows, x + begin * shape.in, scratch);
    }
    for (std::int64_t t = 0; t < tokens; ++t) {
      store(rows, scratch.product.data() + t * rows, y + (begin + t) * row_size, add);
    }
  }
}

}  // namespace

void linear_bf16(const LinearShape& shape, const float* x, const core::BFloat16* w, float* y, std::int64_t row_size,
                 Write write) {
  parallel_chunks(shape.out, kPanel, [&](std::int64_t begin, std::int64_t end) {
    Scratch scratch;
    multiply_panel(shape, end - begin, x, w + begin * shape.in, y + begin, row_size, write == Write::kAdd, scratch);
  });
}

}  // namespace openmsa::lm
