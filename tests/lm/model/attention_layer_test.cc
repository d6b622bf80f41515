#include "lm/model/attention_layer.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "lm/support.h"

namespace openmsa::test {
namespace {

constexpr std::int64_t kHidden = 24;
const std::string kPrefix = "model.layers.1.self_attn.";

/// One sparse layer over two packed sequences, with the loss  y . d_y + weight * L_KL.
class Problem {
 public:
  Problem(lm::Phase phase, const lm::KlOptions& kl) : phase_(phase), kl_(kl) { rotary_.reserve(64); }

  double loss() {
    std::vector<float> y(x_.size(), 0.0f);
    layer_.forward(weights_, rotary_, attention_, phase_, sequences_, x_.data(), y.data(), activations_);
    const double kl = phase_ == lm::Phase::kDense ? 0.0 : attention_.kl_loss(phase_, sequences_, activations_);
    return dot(y, d_y_) + kl_.weight * kl;
  }

  /// Gradients at the present weights; returns that of x.
  std::vector<float> backward() {
    loss();
    gradients_.set_zero();
    std::vector<float> d_x(x_.size());
    lm::AttentionGradients scratch;
    layer_.backward(weights_, rotary_, attention_, phase_, sequences_, kl_, x_.data(), d_y_.data(), activations_,
                    d_x.data(), gradients_, scratch);
    return d_x;
  }

  void expect_parameter_gradients(bool index) {
    for (const lm::Parameter& parameter : weights_.layout().parameters()) {
      if (!parameter.name.starts_with(kPrefix) || parameter.is_index() != index) continue;
      expect_gradient(parameter.name, weights_.of(parameter), gradients_.of(parameter), [this] { return loss(); });
    }
  }

  std::vector<float>& x() { return x_; }
  lm::Parameters& gradients() { return gradients_; }

 private:
  lm::Phase phase_;
  lm::KlOptions kl_;
  lm::ModelConfig config_ = tiny_config();
  lm::Sequences sequences_ = lm::packed_sequences({27, 14});
  lm::Parameters weights_ = random_weights(config_, 3);
  lm::Parameters gradients_{weights_.shared_layout()};
  lm::RotaryTable rotary_{config_};
  lm::PackedAttention attention_{config_, {2, 41, 27}, 1, OPENMSA_BACKEND_REFERENCE};
  lm::AttentionLayer layer_{config_, 1, weights_.layout(), kPrefix};
  lm::AttentionActivations activations_;
  std::vector<float> x_ = random_floats(41 * kHidden, 1);
  std::vector<float> d_y_ = random_floats(41 * kHidden, 2, 0.1f);
};

/// Without stop-gradients every derivative is that of the whole loss.
lm::KlOptions everything_flows() { return {5.0, true, true}; }

class AttentionLayerGradients : public testing::TestWithParam<lm::Phase> {};
INSTANTIATE_TEST_SUITE_P(Phases, AttentionLayerGradients,
                         testing::Values(lm::Phase::kDense, lm::Phase::kWarmup, lm::Phase::kSparse));

TEST_P(AttentionLayerGradients, MatchFiniteDifferences) {
  Problem problem(GetParam(), everything_flows());
  const std::vector<float> d_x = problem.backward();
  expect_gradient("x", problem.x(), d_x, [&] { return problem.loss(); });
  problem.expect_parameter_gradients(false);
  if (GetParam() != lm::Phase::kDense) problem.expect_parameter_gradients(true);
}

/// Pitfalls 20 and 21: the teacher learns from L_KL, or the index projections from the language-model loss.
/// With the stop-gradients the index branch still follows L_KL, and everything else is what it is without L_KL, bit by
/// bit.
TEST_P(AttentionLayerGradients, StopGradientsKeepTheLossesApart) {
  Problem without(GetParam(), {0.0, false, false});
  Problem with(GetParam(), {5.0, false, false});
  EXPECT_EQ(with.backward(), without.backward());
  for (const lm::Parameter& parameter : with.gradients().layout().parameters()) {
    const auto expected = without.gradients().of(parameter);
    const auto actual = with.gradients().of(parameter);
    if (parameter.is_index()) {
      for (const float element : expected) ASSERT_EQ(element, 0.0f) << parameter.name;
    } else {
      ASSERT_TRUE(std::ranges::equal(actual, expected)) << parameter.name;
    }
  }
  if (GetParam() != lm::Phase::kDense) with.expect_parameter_gradients(true);
}

TEST(AttentionLayer, EachSwitchOpensItsOwnPath) {
  Problem closed(lm::Phase::kSparse, {5.0, false, false});
  Problem hidden(lm::Phase::kSparse, {5.0, true, false});
  Problem teacher(lm::Phase::kSparse, {5.0, false, true});
  const std::vector<float> d_x = closed.backward();
  EXPECT_NE(hidden.backward(), d_x);
  EXPECT_NE(teacher.backward(), d_x);
  const lm::Parameter& q_proj = closed.gradients().layout().at(kPrefix + "q_proj.weight");
  const lm::Parameter& v_proj = closed.gradients().layout().at(kPrefix + "v_proj.weight");
  EXPECT_TRUE(std::ranges::equal(hidden.gradients().of(q_proj), closed.gradients().of(q_proj)));
  EXPECT_FALSE(std::ranges::equal(teacher.gradients().of(q_proj), closed.gradients().of(q_proj)));
  EXPECT_TRUE(std::ranges::equal(teacher.gradients().of(v_proj), closed.gradients().of(v_proj)));
}

}  // namespace
}  // namespace openmsa::test
