#include "lm/model/decoder.h"

#include <algorithm>

#include "io/error.h"
#include "lm/ops/linear.h"

namespace openmsa::lm {

void check_tokens(std::span<const std::int32_t> tokens, std::int64_t vocab_size) {
  const auto is_bad = [&](std::int32_t token) { return token < 0 || token >= vocab_size; };
  const auto bad = std::ranges::find_if(tokens, is_bad);
  if (bad == tokens.end()) return;
  throw io::InputError("expected tokens below vocab_size = " + std::to_string(vocab_size) + ", got " +
                       std::to_string(*bad));
}

Decoder::Decoder(const ModelConfig& config, const ParameterLayout& layout, Keep keep)
    : hidden_(config.hidden_size),
      vocab_size_(config.vocab_size),
      eps_(static_cast<float>(config.rms_norm_eps)),
      embedding_(layout.index_of("model.embed_tokens.weight")),
      final_norm_(layout.index_of("model.norm.weight")),
      head_(layout.index_of("lm_head.weight")),
      rotary_(config),
      activations_(keep == Keep::kActivations ? config.layers.size() : 1) {
  for (std::size_t layer = 0; layer < config.layers.size(); ++layer) {
    layers_.emplace_back(config, layer, layout);
    if (layers_.back().is_sparse()) sparse_layers_.push_back(layer);
  }
}

std::span<float> Decoder::forward(const Weights& weights, Attention& attention, Phase phase,
                                  std::span<const std::int32_t> tokens, const Sequences& sequences, Rows rows) {
  const auto hidden = static_cast<std::size_t>(hidden_);
  rotary_.reserve(1 + *std::ranges::max_element(sequences.positions));

  std::vector<float>& embedded = activations(0).input;
  embedded.resize(tokens.size() * hidden);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    weights.matrix(embedding_).copy_row(tokens[t], embedded.data() + t * hidden);
  }
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    std::vector<float>& result = layer + 1 < layers_.size() ? activations(layer + 1).input : output_;
    layers_[layer].forward(weights, rotary_, attention, phase, sequences, activations(layer), result);
  }

  const std::int64_t count = rows == Rows::kAll ? sequences.num_tokens() : 1;
  const float* output = output_.data() + (sequences.num_tokens() - count) * hidden_;
  output_normed_.resize(static_cast<std::size_t>(count * hidden_));
  logits_.resize(static_cast<std::size_t>(count * vocab_size_));
  rms_norm({count, hidden_, eps_}, output, weights.vector(final_norm_), output_normed_.data());
  round_to(weights.precision(), output_normed_);
  linear({count, hidden_, vocab_size_}, output_normed_.data(), weights.matrix(head_), logits_.data());
  return logits_;
}

double Decoder::backward(const Parameters& weights, PackedAttention& attention, Phase phase,
                         std::span<const std::int32_t> tokens, const Sequences& sequences, const KlOptions& kl,
                         Parameters& gradients) {
  const LinearShape head{sequences.num_tokens(), hidden_, vocab_size_};
  d_output_.resize(output_.size());
  linear_backward_weight(head, logits_.data(), output_normed_.data(), gradients[head_]);
  linear_backward_input(head, logits_.data(), weights[head_], d_output_.data());
  rms_norm_backward(norm_shape(sequences), output_.data(), weights[final_norm_], d_output_.data(), d_output_.data(),
                    gradients[final_norm_]);

  double kl_loss = 0.0;
  for (std::size_t layer = layers_.size(); layer-- > 0;) {
    kl_loss += layers_[layer].backward(weights, rotary_, attention, phase, sequences, kl, activations_[layer],
                                       d_output_, gradients, scratch_);
  }
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    float* target = gradients[embedding_] + tokens[t] * hidden_;
    const float* source = d_output_.data() + static_cast<std::int64_t>(t) * hidden_;
    for (std::int64_t c = 0; c < hidden_; ++c) target[c] += source[c];
  }
  return sparse_layers_.empty() ? 0.0 : kl_loss / static_cast<double>(sparse_layers_.size());
}

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
