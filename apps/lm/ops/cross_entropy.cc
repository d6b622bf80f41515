#include "lm/ops/cross_entropy.h"

#include <numeric>
#include <vector>

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {

double cross_entropy(std::span<float> logits, std::span<const std::int32_t> targets) {
  constexpr std::int64_t kChunk = 128;
  const std::int64_t rows = std::ssize(targets), vocab_size = std::ssize(logits) / rows;
  const float scale = 1.0f / static_cast<float>(rows);
  std::vector<double> losses(targets.size());
  parallel_chunks(rows, kChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* row = logits.data() + t * vocab_size;
      float& chosen = row[targets[static_cast<std::size_t>(t)]];
      const double logit = chosen;
      losses[static_cast<std::size_t>(t)] = row_ops().scaled_softmax(vocab_size, row, scale) - logit;
      chosen -= scale;
    }
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(rows);
}

}  // namespace openmsa::lm
