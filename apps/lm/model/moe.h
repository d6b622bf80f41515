// A mixture-of-experts MLP, forward only: each token passes the shared expert and the best few of the routed ones.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "lm/model/mlp.h"

namespace openmsa::lm {

class MoeMlp {
 public:
  /// `prefix` of the parameters' names: "model.layers.1.mlp."
  MoeMlp(const ModelConfig& config, const ParameterLayout& layout, const std::string& prefix);

  /// Adds to y, for x [tokens, hidden] and p = sigmoid(gate x):
  ///   shared(x) + routed_scaling_factor * sum over experts e chosen of p_e / (sum of chosen p) * expert_e(x)
  /// Chosen are the num_experts_per_token experts of highest p + e_score_correction_bias.
  void forward(const Weights& weights, std::int64_t tokens, const float* x, float* y,
               MlpActivations& activations) const;

 private:
  struct Assignment {
    std::int64_t token;
    float weight;
  };
  /// For each expert, the tokens that chose it.
  std::vector<std::vector<Assignment>> route(const Weights& weights, std::int64_t tokens, const float* x) const;
  /// Adds weight * expert(x) to the rows of `sum` that chose the expert.
  void add_expert(const Weights& weights, std::size_t expert, std::span<const Assignment> assignments, const float* x,
                  float* sum, MlpActivations& activations) const;

  Mlp shared_;
  std::int64_t hidden_;
  std::int64_t intermediate_;
  std::size_t num_experts_;
  std::size_t experts_per_token_;
  float scale_;
  float alpha_;
  float limit_;
  ParameterIndex gate_;
  ParameterIndex correction_bias_;
  ParameterIndex gate_up_proj_;
  ParameterIndex down_proj_;
};

}  // namespace openmsa::lm
