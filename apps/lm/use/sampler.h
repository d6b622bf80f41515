// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>

#include "lm/ops/random.h"

namespace openmsa::lm {

struct SamplingOptions {
  double temperature = 0.0;  // 0: greedy
  double top_p = 1.0;        // in (0, 1]
};

/// Greedy: the token of highest logit, the lowest of equals. Otherwise one of the fewest tokens whose probabilities
/// softmax(logits / temperature) reach top_p together, drawn in proportion to them.
std::int32_t sample(std::span<const float> logits, const SamplingOptions& options, Random& random);

}  // namespace openmsa::lm
