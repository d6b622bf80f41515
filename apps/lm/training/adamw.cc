#include "lm/training/adamw.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "lm/ops/parallel.h"
#include "lm/ops/simd.h"

namespace openmsa::lm {
namespace {

constexpr std::int64_t kChunk = 1 << 16;

}  // namespace

void adamw_step(const AdamwOptions& options, std::int64_t step, double lr, const Parameters& gradients,
                AdamwState& state, Parameters& weights) {
  const auto correction = [&](float beta) {
    return static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(beta), static_cast<double>(step))));
  };
  for (const Parameter& parameter : weights.layout().parameters()) {
    const AdamwCoefficients coefficients{options.beta1,
                                         options.beta2,
                                         options.eps,
                                         static_cast<float>(lr),
                                         parameter.is_matrix() ? options.weight_decay : 0.0f,
                                         correction(options.beta1),
                                         correction(options.beta2)};
    const float* g = gradients.of(parameter).data();
    float* m = state.m.of(parameter).data();
    float* v = state.v.of(parameter).data();
    float* w = weights.of(parameter).data();
    parallel_chunks(static_cast<std::int64_t>(parameter.size), kChunk, [&](std::int64_t begin, std::int64_t end) {
      row_ops().adamw(end - begin, coefficients, g + begin, m + begin, v + begin, w + begin);
    });
  }
}

double clip_gradients(double max_norm, Parameters& gradients) {
  const auto size = static_cast<std::int64_t>(gradients.values().size());
  float* values = gradients.values().data();
  std::vector<double> squares(static_cast<std::size_t>(num_chunks(size, kChunk)));
  parallel_chunks(size, kChunk, [&](std::int64_t begin, std::int64_t end) {
    squares[static_cast<std::size_t>(begin / kChunk)] = row_ops().sum_of_squares(end - begin, values + begin);
  });
  const double norm = std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0));
  if (norm > max_norm) {
    const auto factor = static_cast<float>(max_norm / norm);
    parallel_chunks(size, kChunk, [&](std::int64_t begin, std::int64_t end) {
      row_ops().scale(end - begin, factor, values + begin);
    });
  }
  return norm;
}

}  // namespace openmsa::lm
