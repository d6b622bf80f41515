// Attention with the roundings of PyTorch's eager bf16 attention, which stores scores and probabilities as bf16. Judges
// everything around the attention of a model that such attention has run.
#pragma once

#include "lm/model/attention_ops.h"

namespace openmsa::test {

/// One whole sequence; blocks are selected by the library.
class EagerAttention : public lm::Attention {
 public:
  explicit EagerAttention(const lm::ModelConfig& config) : config_(config) {}
  void attend(std::size_t layer, lm::Phase phase, const lm::Sequences& sequences,
              lm::AttentionActivations& activations) override;

 private:
  void select(std::int64_t tokens, lm::AttentionActivations& activations) const;
  /// Which of the tokens up to and including `query` its group attends to.
  std::vector<std::int64_t> visible(lm::Phase phase, std::int64_t query, std::int64_t group, std::int64_t tokens,
                                    const lm::AttentionActivations& activations) const;
  void attend_row(std::int64_t query, std::int64_t head, const std::vector<std::int64_t>& keys,
                  lm::AttentionActivations& activations) const;

  lm::ModelConfig config_;
};

}  // namespace openmsa::test
