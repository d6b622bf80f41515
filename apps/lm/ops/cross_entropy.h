// Mean cross entropy of next-token prediction.
#pragma once

#include <cstdint>
#include <span>

namespace openmsa::lm {

/// Returns -1/N sum_t log softmax(logits[t])[targets[t]] in nats; logits [N, vocab_size] become their gradient,
/// (softmax(logits[t]) - onehot(targets[t])) / N.
double cross_entropy(std::span<float> logits, std::span<const std::int32_t> targets);

}  // namespace openmsa::lm
