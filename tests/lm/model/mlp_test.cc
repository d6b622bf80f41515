#include "lm/model/mlp.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "lm/model/moe.h"
#include "lm/support.h"

namespace openmsa::test {
namespace {

TEST(Swiglu, ByHandWithBothClamps) {
  // gate 2 and 9 (clamped to 7), up -1 and -8 (clamped to -7)
  const std::vector<float> gate_up = {2, 9, -1, -8};
  std::vector<float> y(2);
  lm::swiglu({1, 2, 1.702f, 7.0f}, lm::Precision::kFp32, gate_up.data(), y.data());
  EXPECT_NEAR(y[0], 0.0, 1e-6);
  EXPECT_NEAR(y[1], -6 * 7 / (1 + std::exp(-1.702 * 7)), 1e-4);
}

/// But for the rare value that the exponential's own error tips to the next bf16 number.
TEST(Swiglu, RoundsLikePyTorchInBf16) {
  const int size = 1000;
  std::vector<float> gate_up = random_floats(2 * size, 1, 4.0f);
  for (float& value : gate_up) value = lm::bf16_rounded(value);
  std::vector<float> y(size);
  lm::swiglu({1, size, 1.702f, 7.0f}, lm::Precision::kBf16, gate_up.data(), y.data());
  int different = 0;
  for (int i = 0; i < size; ++i) {
    const auto round = lm::bf16_rounded;
    const float gate = std::min(gate_up[i], 7.0f);
    const float up = std::clamp(gate_up[size + i], -7.0f, 7.0f);
    const float sigmoid = round(1.0f / (1.0f + std::exp(-round(1.702f * gate))));
    different += y[i] != round(round(up + 1.0f) * round(gate * sigmoid));
  }
  EXPECT_LE(different, 5);
}

TEST(Swiglu, ExponentialIsAccurate) {
  const int size = 4001;
  std::vector<float> gate_up(2 * size, 0.0f);
  for (int i = 0; i < size; ++i) gate_up[i] = -20.0f + 0.01f * static_cast<float>(i);
  std::vector<float> y(size);
  lm::swiglu({1, size, 1.0f, 100.0f}, lm::Precision::kFp32, gate_up.data(), y.data());
  for (int i = 0; i < size; ++i) {
    const double expected = gate_up[i] / (1.0 + std::exp(-static_cast<double>(gate_up[i])));
    ASSERT_NEAR(y[i], expected, 1e-6 * std::abs(expected) + 1e-12);
  }
}

TEST(Mlp, GradientsMatchFiniteDifferences) {
  lm::ModelConfig config = tiny_config();
  config.swiglu_limit = 0.8;  // so that the clamps take part
  lm::Parameters weights = random_weights(config, 1);
  const lm::Mlp mlp(config, config.dense_intermediate_size, weights.layout(), "model.layers.0.mlp.");
  constexpr std::int64_t kTokens = 3;
  std::vector<float> x = random_floats(kTokens * 24, 2);
  const std::vector<float> d_y = random_floats(kTokens * 24, 3);

  lm::MlpActivations activations;
  const auto loss = [&] {
    std::vector<float> y(d_y.size(), 0.0f);
    mlp.forward(weights, kTokens, x.data(), y.data(), activations);
    return dot(y, d_y);
  };
  loss();
  lm::Parameters gradients(weights.shared_layout());
  lm::MlpActivations scratch;
  std::vector<float> d_x(x.size());
  mlp.backward(weights, kTokens, x.data(), d_y.data(), activations, d_x.data(), gradients, scratch);
  expect_gradient("x", x, d_x, loss);
  for (const char* name : {"model.layers.0.mlp.gate_up_proj.weight", "model.layers.0.mlp.down_proj.weight"}) {
    const lm::Parameter& parameter = weights.layout().at(name);
    expect_gradient(name, weights.of(parameter), gradients.of(parameter), loss);
  }
}

/// With one expert per token the routed part is routed_scaling_factor times that expert's MLP.
TEST(MoeMlp, RoutesToTheExpertOfHighestCorrectedScore) {
  lm::ModelConfig config = tiny_config();
  config.layers[0].mlp = lm::MlpKind::kMoe;
  config.num_experts = 3;
  config.num_experts_per_token = 1;
  config.expert_intermediate_size = config.shared_intermediate_size = config.dense_intermediate_size;
  config.routed_scaling_factor = 2.5;
  lm::Parameters weights = random_weights(config, 1);
  const auto of = [&](const char* name) {
    return weights.of(weights.layout().at("model.layers.0.mlp." + std::string(name)));
  };
  of("gate.e_score_correction_bias")[2] = 10.0f;  // every token goes to expert 2
  const lm::MoeMlp moe(config, weights.layout(), "model.layers.0.mlp.");
  const lm::Mlp shared(config, config.dense_intermediate_size, weights.layout(), "model.layers.0.mlp.shared_experts.");

  const std::vector<float> x = random_floats(5 * 24, 2);
  std::vector<float> y(x.size(), 0.0f);
  std::vector<float> shared_part(x.size(), 0.0f);
  std::vector<float> expert_part(x.size(), 0.0f);
  lm::MlpActivations activations;
  moe.forward(weights, 5, x.data(), y.data(), activations);
  shared.forward(weights, 5, x.data(), shared_part.data(), activations);
  std::ranges::copy(of("experts.gate_up_proj").last(2 * 20 * 24), of("shared_experts.gate_up_proj.weight").begin());
  std::ranges::copy(of("experts.down_proj").last(20 * 24), of("shared_experts.down_proj.weight").begin());
  shared.forward(weights, 5, x.data(), expert_part.data(), activations);
  for (std::size_t i = 0; i < y.size(); ++i) ASSERT_NEAR(y[i], shared_part[i] + 2.5f * expert_part[i], 1e-4);
}

}  // namespace
}  // namespace openmsa::test
