#include "lm/model/parameters.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <stdexcept>

#include "lm/ops/random.h"

namespace openmsa::lm {

bool Parameter::is_index() const { return name.find(".indexer.") != std::string::npos; }

ParameterLayout::ParameterLayout(const ModelConfig& config) {
  add("model.embed_tokens.weight", {config.vocab_size, config.hidden_size});
  for (std::size_t i = 0; i < config.layers.size(); ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    add(prefix + "input_layernorm.weight", {config.hidden_size});
    add_attention(prefix + "self_attn.", config, config.layers[i].attention);
    add(prefix + "post_attention_layernorm.weight", {config.hidden_size});
    add_mlp(prefix + "mlp.", config, config.layers[i].mlp);
  }
  add("model.norm.weight", {config.hidden_size});
  add("lm_head.weight", {config.vocab_size, config.hidden_size});
}

void ParameterLayout::add(std::string name, std::vector<std::int64_t> shape) {
  constexpr std::size_t kAlignment = 16;
  const auto size = static_cast<std::size_t>(
      std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<std::int64_t>()));
  parameters_.push_back({std::move(name), std::move(shape), size_, size});
  size_ += (size + kAlignment - 1) / kAlignment * kAlignment;
}

void ParameterLayout::add_attention(const std::string& prefix, const ModelConfig& config, AttentionKind kind) {
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t q_size = std::int64_t{config.num_heads_q} * config.head_dim;
  const std::int64_t kv_size = std::int64_t{config.num_heads_kv} * config.head_dim;
  add(prefix + "q_proj.weight", {q_size, hidden});
  add(prefix + "k_proj.weight", {kv_size, hidden});
  add(prefix + "v_proj.weight", {kv_size, hidden});
  add(prefix + "o_proj.weight", {hidden, q_size});
  add(prefix + "q_norm.weight", {config.head_dim});
  add(prefix + "k_norm.weight", {config.head_dim});
  if (kind == AttentionKind::kFull) return;
  add(prefix + "indexer.q_proj.weight", {std::int64_t{config.num_heads_kv} * config.index_dim, hidden});
  add(prefix + "indexer.k_proj.weight", {config.index_dim, hidden});
  add(prefix + "indexer.q_norm.weight", {config.index_dim});
  add(prefix + "indexer.k_norm.weight", {config.index_dim});
}

void ParameterLayout::add_mlp(const std::string& prefix, const ModelConfig& config, MlpKind kind) {
  const std::int64_t hidden = config.hidden_size;
  const auto add_gated = [&](const std::string& name, std::int64_t intermediate) {
    add(name + "gate_up_proj.weight", {2 * intermediate, hidden});
    add(name + "down_proj.weight", {hidden, intermediate});
  };
  if (kind == MlpKind::kDense) {
    add_gated(prefix, config.dense_intermediate_size);
    return;
  }
  const std::int64_t experts = config.num_experts;
  const std::int64_t intermediate = config.expert_intermediate_size;
  add(prefix + "gate.weight", {experts, hidden});
  add(prefix + "gate.e_score_correction_bias", {experts});
  add(prefix + "experts.gate_up_proj", {experts, 2 * intermediate, hidden});
  add(prefix + "experts.down_proj", {experts, hidden, intermediate});
  add_gated(prefix + "shared_experts.", config.shared_intermediate_size);
}

ParameterIndex ParameterLayout::index_of(const std::string& name) const {
  const auto found = std::ranges::find(parameters_, name, &Parameter::name);
  if (found == parameters_.end()) throw std::logic_error("the model has no parameter " + name);
  return static_cast<ParameterIndex>(found - parameters_.begin());
}

std::size_t ParameterLayout::num_parameters() const {
  return std::accumulate(parameters_.begin(), parameters_.end(), std::size_t{0},
                         [](std::size_t sum, const Parameter& parameter) { return sum + parameter.size; });
}

Parameters::Parameters(std::shared_ptr<const ParameterLayout> layout)
    : layout_(std::move(layout)), values_(layout_->size(), 0.0f) {}

void Parameters::set_zero() { std::ranges::fill(values_, 0.0f); }

void initialize(const ModelConfig& config, std::uint64_t seed, Parameters& weights) {
  for (const Parameter& parameter : weights.layout().parameters()) initialize(config, seed, parameter, weights);
}

void initialize(const ModelConfig& config, std::uint64_t seed, const Parameter& parameter, Parameters& weights) {
  if (!parameter.is_matrix()) {
    std::ranges::fill(weights.of(parameter), 0.0f);
    return;
  }
  double deviation = config.initializer_range;
  const bool writes_residual =
      parameter.name.find("o_proj") != std::string::npos || parameter.name.find("down_proj") != std::string::npos;
  if (writes_residual) deviation /= std::sqrt(2.0 * static_cast<double>(config.layers.size()));
  Random random(hash(seed, parameter.name));
  for (float& value : weights.of(parameter)) value = static_cast<float>(deviation) * random.normal();
}

}  // namespace openmsa::lm
