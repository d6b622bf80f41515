// The decoder: embedding, layers, final norm, output head; forward for any batch, backward for packed ones.
#pragma once

#include <span>
#include <vector>

#include "lm/model/decoder_layer.h"

namespace openmsa::lm {

/// InputError: the first token that is not in a vocabulary of that size.
void check_tokens(std::span<const std::int32_t> tokens, std::int64_t vocab_size);

class Decoder {
 public:
  /// Whether activations of every layer are kept, for backward and for the figures of single layers.
  enum class Keep { kNothing, kActivations };

  /// The rows for which the head computes logits.
  enum class Rows { kAll, kLast };

  Decoder(const ModelConfig& config, const ParameterLayout& layout, Keep keep);

  /// Logits [tokens or 1, vocab_size] of the token after each row; valid, and free to be changed, until the next call.
  std::span<float> forward(const Weights& weights, Attention& attention, Phase phase,
                           std::span<const std::int32_t> tokens, const Sequences& sequences, Rows rows = Rows::kAll);

  /// Continues the latest forward pass: the logits hold their gradient (cross_entropy). Adds the gradients of
  /// L = L_LM + kl.weight * sum over layers of L_KL and returns the mean of L_KL over the sparse layers.
  double backward(const Parameters& weights, PackedAttention& attention, Phase phase,
                  std::span<const std::int32_t> tokens, const Sequences& sequences, const KlOptions& kl,
                  Parameters& gradients);

  /// Numbers of the layers with an index branch.
  const std::vector<std::size_t>& sparse_layers() const { return sparse_layers_; }
  const AttentionActivations& attention_activations(std::size_t layer) const { return activations_[layer].attention; }

 private:
  LayerActivations& activations(std::size_t layer) { return activations_[layer % activations_.size()]; }
  NormShape norm_shape(const Sequences& sequences) const { return {sequences.num_tokens(), hidden_, eps_}; }

  std::int64_t hidden_;
  std::int64_t vocab_size_;
  float eps_;
  ParameterIndex embedding_;
  ParameterIndex final_norm_;
  ParameterIndex head_;
  RotaryTable rotary_;
  std::vector<DecoderLayer> layers_;
  std::vector<std::size_t> sparse_layers_;

  std::vector<LayerActivations> activations_;  // of every layer, or one that all share
  std::vector<float> output_;                  // residual stream after the last layer
  std::vector<float> output_normed_;
  std::vector<float> logits_;
  std::vector<float> d_output_;
  LayerGradients scratch_;
};

// Health of the index branches, as means over the sparse layers of the latest forward pass.

/// Recall of the selection, over the first sequence of the batch.
Recall mean_recall(const Decoder& decoder, PackedAttention& attention, const Sequences& sequences,
                   IndexKeys index_keys = IndexKeys::kFp32);

/// L_KL over the phase's tokens, without gradients.
double mean_kl_loss(const Decoder& decoder, PackedAttention& attention, Phase phase, const Sequences& sequences);

}  // namespace openmsa::lm
