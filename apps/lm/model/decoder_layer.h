// One decoder layer: x += attention(norm(x)), then x += mlp(norm(x)).
#pragma once

#include <string>
#include <variant>

#include "lm/model/attention_layer.h"
#include "lm/model/mlp.h"
#include "lm/model/moe.h"

namespace openmsa::lm {

struct LayerActivations {
  std::vector<float> input;   // [tokens, hidden] residual stream before the layer
  std::vector<float> normed;  // input of the attention
  AttentionActivations attention;
  std::vector<float> middle;         // residual stream between attention and MLP
  std::vector<float> middle_normed;  // input of the MLP
  MlpActivations mlp;
};

/// Memory of a backward pass, shared by all layers.
struct LayerGradients {
  std::vector<float> d_normed;
  AttentionGradients attention;
  MlpActivations mlp;
};

class DecoderLayer {
 public:
  DecoderLayer(const ModelConfig& config, std::size_t layer, const ParameterLayout& layout);

  bool is_sparse() const { return attention_.is_sparse(); }

  /// Reads activations.input and writes y [tokens, hidden].
  void forward(const Weights& weights, const RotaryTable& rotary, Attention& attention, Phase phase,
               const Sequences& sequences, LayerActivations& activations, std::vector<float>& y) const;

  /// `d_y` becomes the gradient of activations.input; returns L_KL. Dense MLPs only.
  double backward(const Parameters& weights, const RotaryTable& rotary, PackedAttention& attention, Phase phase,
                  const Sequences& sequences, const KlOptions& kl, const LayerActivations& activations,
                  std::vector<float>& d_y, Parameters& gradients, LayerGradients& scratch) const;

 private:
  NormShape norm_shape(const Sequences& sequences) const { return {sequences.num_tokens(), hidden_, eps_}; }

  std::int64_t hidden_;
  float eps_;
  ParameterIndex input_norm_;
  ParameterIndex middle_norm_;
  AttentionLayer attention_;
  std::variant<Mlp, MoeMlp> mlp_;
};

}  // namespace openmsa::lm
