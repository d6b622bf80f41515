#include "lm/model/decoder_layer.h"

namespace openmsa::lm {
namespace {

std::string layer_prefix(std::size_t layer) { return "model.layers." + std::to_string(layer) + "."; }

std::variant<Mlp, MoeMlp> make_mlp(const ModelConfig& config, std::size_t layer, const ParameterLayout& layout) {
  const std::string prefix = layer_prefix(layer) + "mlp.";
  if (config.layers[layer].mlp == MlpKind::kMoe) return MoeMlp(config, layout, prefix);
  return Mlp(config, config.dense_intermediate_size, layout, prefix);
}

}  // namespace

DecoderLayer::DecoderLayer(const ModelConfig& config, std::size_t layer, const ParameterLayout& layout)
    : hidden_(config.hidden_size),
      eps_(static_cast<float>(config.rms_norm_eps)),
      input_norm_(layout.index_of(layer_prefix(layer) + "input_layernorm.weight")),
      middle_norm_(layout.index_of(layer_prefix(layer) + "post_attention_layernorm.weight")),
      attention_(config, layer, layout, layer_prefix(layer) + "self_attn."),
      mlp_(make_mlp(config, layer, layout)) {}

void DecoderLayer::forward(const Weights& weights, const RotaryTable& rotary, Attention& attention, Phase phase,
                           const Sequences& sequences, LayerActivations& activations, std::vector<float>& y) const {
  const NormShape norm = norm_shape(sequences);
  activations.normed.resize(activations.input.size());
  activations.middle_normed.resize(activations.input.size());

  rms_norm(norm, activations.input.data(), weights.vector(input_norm_), activations.normed.data());
  round_to(weights.precision(), activations.normed);
  activations.middle = activations.input;
  attention_.forward(weights, rotary, attention, phase, sequences, activations.normed.data(), activations.middle.data(),
                     activations.attention);

  rms_norm(norm, activations.middle.data(), weights.vector(middle_norm_), activations.middle_normed.data());
  round_to(weights.precision(), activations.middle_normed);
  y = activations.middle;
  std::visit(
      [&](const auto& mlp) {
        mlp.forward(weights, norm.rows, activations.middle_normed.data(), y.data(), activations.mlp);
      },
      mlp_);
}

double DecoderLayer::backward(const Parameters& weights, const RotaryTable& rotary, PackedAttention& attention,
                              Phase phase, const Sequences& sequences, const KlOptions& kl,
                              const LayerActivations& activations, std::vector<float>& d_y, Parameters& gradients,
                              LayerGradients& scratch) const {
  const NormShape norm = norm_shape(sequences);
  scratch.d_normed.resize(d_y.size());
  float* d_normed = scratch.d_normed.data();

  std::get<Mlp>(mlp_).backward(weights, norm.rows, activations.middle_normed.data(), d_y.data(), activations.mlp,
                               d_normed, gradients, scratch.mlp);
  rms_norm_backward(norm, activations.middle.data(), weights[middle_norm_], d_normed, d_y.data(),
                    gradients[middle_norm_], Write::kAdd);

  const double kl_loss =
      attention_.backward(weights, rotary, attention, phase, sequences, kl, activations.normed.data(), d_y.data(),
                          activations.attention, d_normed, gradients, scratch.attention);
  rms_norm_backward(norm, activations.input.data(), weights[input_norm_], d_normed, d_y.data(), gradients[input_norm_],
                    Write::kAdd);
  return kl_loss;
}

}  // namespace openmsa::lm
