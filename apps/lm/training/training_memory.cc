#include "lm/training/training_memory.h"

#include <algorithm>

#include "lm/checkpoint/memory.h"
#include "lm/model/parameters.h"

namespace openmsa::lm {
namespace {

/// Floats, as double: the largest options that are accepted have a product of more than 64 bits.
using Floats = double;

/// What a token takes, in floats.
struct PerToken {
  explicit PerToken(const ModelConfig& config)
      : hidden(config.hidden_size),
        heads_q(config.num_heads_q),
        heads_kv(config.num_heads_kv),
        q(heads_q * config.head_dim),
        kv(heads_kv * config.head_dim),
        index((heads_kv + 1) * config.index_dim),
        topk(heads_kv * config.topk),
        intermediate(config.dense_intermediate_size),
        vocab(config.vocab_size) {}

  /// What AttentionLayer and Mlp keep of a layer for its backward pass: the residual stream before and after each norm,
  /// projections with and without norm and rotation, the output, both halves of the MLP and their product.
  Floats layer(AttentionKind kind) const {
    const Floats selection = kind == AttentionKind::kSparse ? 2 * index + topk : 0;
    return 4 * hidden + 3 * q + 3 * kv + heads_q + selection + 3 * intermediate;
  }

  /// What all layers share: logits, the ends of the decoder, the gradients of one layer.
  Floats shared() const { return vocab + 4 * hidden + 2 * q + 2 * kv + index + 3 * intermediate; }

  Floats hidden, heads_q, heads_kv, q, kv, index, topk, intermediate, vocab;
};

}  // namespace

std::uint64_t training_bytes(const ModelConfig& config, const TrainingOptions& options) {
  constexpr Floats kLargest = 1e18;
  const Floats tokens = static_cast<Floats>(options.batch) * static_cast<Floats>(options.seqlen) +
                        static_cast<Floats>(options.short_batch) * static_cast<Floats>(options.short_seqlen);
  const PerToken sizes(config);
  Floats per_token = sizes.shared();
  for (const LayerConfig& layer : config.layers) per_token += sizes.layer(layer.attention);
  const Floats parameters = 4.0 * static_cast<Floats>(ParameterLayout(config).size());  // and gradients, two moments
  return static_cast<std::uint64_t>(std::min((parameters + tokens * per_token) * sizeof(float), kLargest));
}

void require_training_memory(const ModelConfig& config, const TrainingOptions& options) {
  require_memory("training", training_bytes(config, options));
}

}  // namespace openmsa::lm
