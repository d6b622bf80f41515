#include "lm/model/moe.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lm/ops/linear.h"

namespace openmsa::lm {

MoeMlp::MoeMlp(const ModelConfig& config, const ParameterLayout& layout, const std::string& prefix)
    : shared_(config, config.shared_intermediate_size, layout, prefix + "shared_experts."),
      hidden_(config.hidden_size),
      intermediate_(config.expert_intermediate_size),
      num_experts_(static_cast<std::size_t>(config.num_experts)),
      experts_per_token_(static_cast<std::size_t>(config.num_experts_per_token)),
      scale_(static_cast<float>(config.routed_scaling_factor)),
      alpha_(static_cast<float>(config.swiglu_alpha)),
      limit_(static_cast<float>(config.swiglu_limit)),
      gate_(layout.index_of(prefix + "gate.weight")),
      correction_bias_(layout.index_of(prefix + "gate.e_score_correction_bias")),
      gate_up_proj_(layout.index_of(prefix + "experts.gate_up_proj")),
      down_proj_(layout.index_of(prefix + "experts.down_proj")) {}

void MoeMlp::forward(const Weights& weights, std::int64_t tokens, const float* x, float* y,
                     MlpActivations& activations) const {
  const auto size = static_cast<std::size_t>(tokens * hidden_);
  std::vector<float> shared(size);
  shared_.forward(weights, tokens, x, shared.data(), activations, Write::kOverwrite);

  std::vector<float> routed(size, 0.0f);
  const auto assignments = route(weights, tokens, x);
  for (std::size_t expert = 0; expert < num_experts_; ++expert) {
    if (!assignments[expert].empty()) add_expert(weights, expert, assignments[expert], x, routed.data(), activations);
  }

  const auto round = [&](std::vector<float>& values) { round_to(weights.precision(), values); };
  round(routed);
  for (float& value : routed) value *= scale_;
  round(routed);
  for (std::size_t i = 0; i < size; ++i) shared[i] += routed[i];
  round(shared);
  for (std::size_t i = 0; i < size; ++i) y[i] += shared[i];
  round_to(weights.precision(), {y, size});
}

std::vector<std::vector<MoeMlp::Assignment>> MoeMlp::route(const Weights& weights, std::int64_t tokens,
                                                           const float* x) const {
  std::vector<float> p(static_cast<std::size_t>(tokens) * num_experts_);
  linear({tokens, hidden_, static_cast<std::int64_t>(num_experts_)}, x, weights.matrix(gate_), p.data());
  for (float& value : p) value = 1.0f / (1.0f + std::exp(-value));

  const float* bias = weights.vector(correction_bias_);
  std::vector<std::vector<Assignment>> assignments(num_experts_);
  std::vector<std::size_t> order(num_experts_);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float* row = p.data() + static_cast<std::size_t>(t) * num_experts_;
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, std::greater{}, [&](std::size_t expert) { return row[expert] + bias[expert]; });
    const std::span chosen(order.data(), experts_per_token_);
    float sum = 0.0f;
    for (const std::size_t expert : chosen) sum += row[expert];
    for (const std::size_t expert : chosen) assignments[expert].push_back({t, row[expert] / sum});
  }
  return assignments;
}

void MoeMlp::add_expert(const Weights& weights, std::size_t expert, std::span<const Assignment> assignments,
                        const float* x, float* sum, MlpActivations& activations) const {
  const auto count = static_cast<std::int64_t>(assignments.size());
  const auto hidden = static_cast<std::size_t>(hidden_);
  std::vector<float> rows(assignments.size() * hidden);
  for (std::size_t i = 0; i < assignments.size(); ++i) {
    std::copy_n(x + assignments[i].token * hidden_, hidden, rows.data() + i * hidden);
  }
  const auto number = static_cast<std::int64_t>(expert);
  activations.gate_up.resize(assignments.size() * 2 * static_cast<std::size_t>(intermediate_));
  activations.activated.resize(assignments.size() * static_cast<std::size_t>(intermediate_));
  linear({count, hidden_, 2 * intermediate_}, rows.data(),
         weights.matrix(gate_up_proj_).rows(number * 2 * intermediate_, 2 * intermediate_), activations.gate_up.data());
  swiglu({count, intermediate_, alpha_, limit_}, weights.precision(), activations.gate_up.data(),
         activations.activated.data());
  linear({count, intermediate_, hidden_}, activations.activated.data(),
         weights.matrix(down_proj_).rows(number * hidden_, hidden_), rows.data());
  for (std::size_t i = 0; i < assignments.size(); ++i) {
    float* target = sum + assignments[i].token * hidden_;
    for (std::size_t c = 0; c < hidden; ++c) target[c] += assignments[i].weight * rows[i * hidden + c];
  }
}

}  // namespace openmsa::lm
