#include "lm/model/health.h"

namespace openmsa::lm {

Recall mean_recall(const Decoder& decoder, PackedAttention& attention, const Sequences& sequences,
                   IndexKeys index_keys) {
  Recall mean{0.0, 0.0};
  const auto layers = static_cast<double>(decoder.sparse_layers().size());
  for (const std::size_t layer : decoder.sparse_layers()) {
    const Recall recall = attention.recall(sequences, decoder.attention_activations(layer), index_keys);
    mean.block += recall.block / layers;
    mean.score += recall.score / layers;
  }
  return mean;
}

double mean_kl_loss(const Decoder& decoder, PackedAttention& attention, Phase phase, const Sequences& sequences) {
  double sum = 0.0;
  for (const std::size_t layer : decoder.sparse_layers()) {
    sum += attention.kl_loss(phase, sequences, decoder.attention_activations(layer));
  }
  return sum / static_cast<double>(decoder.sparse_layers().size());
}

}  // namespace openmsa::lm
