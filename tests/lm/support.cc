#include "lm/support.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lm/ops/random.h"

namespace openmsa::test {

std::vector<float> random_floats(std::size_t count, std::uint64_t seed, float deviation) {
  lm::Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = deviation * random.normal();
  return values;
}

double dot(std::span<const float> x, std::span<const float> y) {
  return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

void expect_gradient(const std::string& name, std::span<float> values, std::span<const float> gradient,
                     const std::function<double()>& loss) {
  constexpr float kStep = 4e-3f;
  constexpr double kTolerance = 1e-2;
  constexpr std::size_t kMaxElements = 96;
  double largest = 0.0;
  for (const float element : gradient) largest = std::max(largest, std::abs(static_cast<double>(element)));
  ASSERT_GT(largest, 1e-4) << name << ": the loss does not depend on it";
  const std::size_t stride = 1 + (values.size() - 1) / kMaxElements;
  for (std::size_t i = 0; i < values.size(); i += stride) {
    const float value = values[i];
    const float up = value + kStep;
    const float down = value - kStep;
    values[i] = up;
    const double loss_up = loss();
    values[i] = down;
    const double loss_down = loss();
    values[i] = value;
    const double expected = (loss_up - loss_down) / (static_cast<double>(up) - down);
    ASSERT_NEAR(gradient[i], expected, kTolerance * largest) << name << ", element " << i;
  }
}

lm::ModelConfig tiny_config() {
  lm::ModelConfig config;
  config.vocab_size = 32;
  config.hidden_size = 24;
  config.num_heads_q = 4;
  config.num_heads_kv = 2;
  config.head_dim = 8;
  config.rotary_dim = 4;
  config.index_dim = 8;
  config.block_size = 8;
  config.topk = 2;
  config.dense_intermediate_size = 20;
  config.layers.resize(2);
  config.layers[1].attention = lm::AttentionKind::kSparse;
  return config;
}

lm::ModelConfig tiny_moe_config(int num_experts) {
  lm::ModelConfig config = tiny_config();
  config.layers[1].mlp = lm::MlpKind::kMoe;
  config.num_experts = num_experts;
  config.num_experts_per_token = 2;
  config.expert_intermediate_size = 16;
  config.shared_intermediate_size = 8;
  config.routed_scaling_factor = 2.0;
  return config;
}

lm::Parameters random_weights(const lm::ModelConfig& config, std::uint64_t seed) {
  lm::Parameters weights(std::make_shared<const lm::ParameterLayout>(config));
  for (const lm::Parameter& parameter : weights.layout().parameters()) {
    const auto values = random_floats(parameter.size, lm::hash(seed, parameter.name), 0.3f);
    std::ranges::copy(values, weights.of(parameter).begin());
  }
  return weights;
}

std::vector<float> values_of(const lm::Weights& weights) {
  std::vector<float> values;
  for (const lm::Parameter& parameter : weights.layout().parameters()) {
    const lm::WeightMatrix& matrix = weights.matrix(weights.layout().index_of(parameter.name));
    const auto begin = values.size();
    values.resize(begin + parameter.size);
    for (std::int64_t row = 0; row * matrix.in < static_cast<std::int64_t>(parameter.size); ++row) {
      matrix.copy_row(row, values.data() + begin + row * matrix.in);
    }
  }
  return values;
}

std::vector<std::int32_t> random_tokens(std::size_t count, int vocab_size, std::uint64_t seed) {
  lm::Random random(seed);
  std::vector<std::int32_t> tokens(count);
  for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random.below(vocab_size));
  return tokens;
}

}  // namespace openmsa::test
