// Continuing a prompt: prefill in chunks, then one token after the other, chosen from its logits, through the paged
// cache.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lm/checkpoint/checkpoint.h"
#include "lm/ops/random.h"

namespace openmsa::lm {

struct SamplingOptions {
  double temperature = 0.0;  // 0: greedy
  double top_p = 1.0;        // in (0, 1]
};

/// Greedy: the token of highest logit, the lowest of equals. Otherwise one of the fewest tokens whose probabilities
/// softmax(logits / temperature) reach top_p together, drawn in proportion to them. InputError where a logit is NaN or
/// the highest infinite: the model's weights are, or it overflows.
std::int32_t sample(std::span<const float> logits, const SamplingOptions& options, Random& random);

struct GenerationOptions {
  std::int64_t max_new_tokens = 256;
  std::int64_t chunk = 512;              // prompt tokens per prefill pass
  std::vector<std::int32_t> end_tokens;  // stop before any of these
  SamplingOptions sampling;
  std::uint64_t seed = 1;
  int num_threads = 0;
};

struct Generation {
  std::vector<std::int32_t> tokens;  // without the prompt
  double prefill_seconds;
  double decode_seconds;
};

/// InputError for an empty prompt or a token outside the vocabulary. `on_token` is called with every new token.
Generation generate(const Model& model, std::span<const std::int32_t> prompt, const GenerationOptions& options,
                    const std::function<void(std::int32_t)>& on_token);

}  // namespace openmsa::lm
