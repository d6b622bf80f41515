// The gated MLP of a dense layer: y += down(swiglu(gate_up(x))).
#pragma once

#include <string>
#include <vector>

#include "lm/model/weights.h"
#include "lm/ops/linear.h"
#include "lm/ops/swiglu.h"

namespace openmsa::lm {

/// The activations that backward needs of a forward pass.
struct MlpActivations {
  std::vector<float> gate_up;    // [tokens, 2 * intermediate]
  std::vector<float> activated;  // [tokens, intermediate]
};

class Mlp {
 public:
  /// `prefix` of the parameters' names: "model.layers.0.mlp."
  Mlp(const ModelConfig& config, std::int64_t intermediate, const ParameterLayout& layout, const std::string& prefix);

  /// Writes the layer's result for x [tokens, hidden] to y, or adds it.
  void forward(const Weights& weights, std::int64_t tokens, const float* x, float* y, MlpActivations& activations,
               Write write = Write::kAdd) const;

  /// Writes d_x and adds the weights' gradients; `scratch` is working memory.
  void backward(const Parameters& weights, std::int64_t tokens, const float* x, const float* d_y,
                const MlpActivations& activations, float* d_x, Parameters& gradients, MlpActivations& scratch) const;

 private:
  SwigluShape swiglu_shape(std::int64_t tokens) const { return {tokens, intermediate_, alpha_, limit_}; }
  void resize(std::int64_t tokens, MlpActivations& activations) const;

  std::int64_t hidden_;
  std::int64_t intermediate_;
  float alpha_;
  float limit_;
  ParameterIndex gate_up_proj_;
  ParameterIndex down_proj_;
};

}  // namespace openmsa::lm
