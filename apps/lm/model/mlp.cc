#include "lm/model/mlp.h"

namespace openmsa::lm {

Mlp::Mlp(const ModelConfig& config, std::int64_t intermediate, const ParameterLayout& layout, const std::string& prefix)
    : hidden_(config.hidden_size),
      intermediate_(intermediate),
      alpha_(static_cast<float>(config.swiglu_alpha)),
      limit_(static_cast<float>(config.swiglu_limit)),
      gate_up_proj_(layout.index_of(prefix + "gate_up_proj.weight")),
      down_proj_(layout.index_of(prefix + "down_proj.weight")) {}

void Mlp::resize(std::int64_t tokens, MlpActivations& activations) const {
  activations.gate_up.resize(static_cast<std::size_t>(tokens * 2 * intermediate_));
  activations.activated.resize(static_cast<std::size_t>(tokens * intermediate_));
}

void Mlp::forward(const Weights& weights, std::int64_t tokens, const float* x, float* y, MlpActivations& activations,
                  Write write) const {
  resize(tokens, activations);
  linear({tokens, hidden_, 2 * intermediate_}, x, weights.matrix(gate_up_proj_), activations.gate_up.data());
  swiglu(swiglu_shape(tokens), weights.precision(), activations.gate_up.data(), activations.activated.data());
  linear({tokens, intermediate_, hidden_}, activations.activated.data(), weights.matrix(down_proj_), y, write);
}

void Mlp::backward(const Parameters& weights, std::int64_t tokens, const float* x, const float* d_y,
                   const MlpActivations& activations, float* d_x, Parameters& gradients,
                   MlpActivations& scratch) const {
  resize(tokens, scratch);
  const LinearShape up{tokens, hidden_, 2 * intermediate_};
  const LinearShape down{tokens, intermediate_, hidden_};
  linear_backward_weight(down, d_y, activations.activated.data(), gradients[down_proj_]);
  linear_backward_input(down, d_y, weights[down_proj_], scratch.activated.data());
  swiglu_backward(swiglu_shape(tokens), activations.gate_up.data(), scratch.activated.data(), scratch.gate_up.data());
  linear_backward_weight(up, scratch.gate_up.data(), x, gradients[gate_up_proj_]);
  linear_backward_input(up, scratch.gate_up.data(), weights[gate_up_proj_], d_x);
}

}  // namespace openmsa::lm
