#include "lm/ops/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {
namespace {

/// Replaces a row by softmax(row) * scale and returns log sum exp(row).
OPENMSA_VECTOR_CLONES double scaled_softmax(float* row, std::int64_t size, float scale) {
  float largest = row[0];
#pragma omp simd reduction(max : largest)
  for (std::int64_t c = 0; c < size; ++c) largest = row[c] > largest ? row[c] : largest;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t c = 0; c < size; ++c) {
    row[c] = vector_exp(row[c] - largest);
    sum += row[c];
  }
  const float factor = scale / sum;
#pragma omp simd
  for (std::int64_t c = 0; c < size; ++c) row[c] *= factor;
  return static_cast<double>(largest) + std::log(static_cast<double>(sum));
}

}  // namespace

double cross_entropy(std::span<float> logits, std::span<const std::int32_t> targets) {
  constexpr std::int64_t kChunk = 128;
  const auto rows = static_cast<std::int64_t>(targets.size());
  const std::int64_t vocab_size = static_cast<std::int64_t>(logits.size()) / rows;
  const float scale = 1.0f / static_cast<float>(rows);
  std::vector<double> losses(targets.size());
  parallel_chunks(rows, kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* row = logits.data() + t * vocab_size;
      float& chosen = row[targets[static_cast<std::size_t>(t)]];
      const double logit = chosen;
      losses[static_cast<std::size_t>(t)] = scaled_softmax(row, vocab_size, scale) - logit;
      chosen -= scale;
    }
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(rows);
}

}  // namespace openmsa::lm
