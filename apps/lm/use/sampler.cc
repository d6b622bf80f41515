#include "lm/use/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace openmsa::lm {

std::int32_t sample(std::span<const float> logits, const SamplingOptions& options, Random& random) {
  const auto best = std::ranges::max_element(logits);
  if (options.temperature <= 0.0) return static_cast<std::int32_t>(best - logits.begin());

  std::vector<double> p(logits.size());
  std::ranges::transform(logits, p.begin(), [&](float logit) {
    return std::exp((static_cast<double>(logit) - *best) / options.temperature);
  });
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto probability = [&](std::int32_t token) { return p[static_cast<std::size_t>(token)]; };
  std::ranges::stable_sort(order, std::greater{}, probability);

  const double wanted = options.top_p * std::accumulate(p.begin(), p.end(), 0.0);
  double mass = 0.0;
  std::size_t kept = 0;
  while (kept < order.size() && (kept == 0 || mass < wanted)) mass += probability(order[kept++]);

  double rest = random.uniform() * mass;
  for (std::size_t i = 0; i + 1 < kept; ++i) {
    rest -= probability(order[i]);
    if (rest < 0.0) return order[i];
  }
  return order[kept - 1];
}

}  // namespace openmsa::lm
