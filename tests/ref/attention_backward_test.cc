#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>

#include "ref/hand.h"
#include "support/finite_differences.h"

namespace openmsa::test {
namespace {

/// What a loss with the gradients d_o and, where the layer has it, d_lse would be, were it linear. An lse of -inf, which
/// nothing moves, does not count.
double loss_of(const Layer& layer, openmsa_op forward) {
  const TensorMap out = run(layer, forward, {"o", "lse"});
  const Buffer &o = out.at("o"), &lse = out.at("lse"), &d_o = layer.tensors.at("d_o");
  double sum = 0;
  for (std::int64_t i = 0; i < o.size(); ++i) sum += o[i] * d_o[i];
  const auto d_lse = layer.tensors.find("d_lse");
  for (std::int64_t i = 0; d_lse != layer.tensors.end() && i < lse.size(); ++i) {
    if (std::isfinite(lse[i])) sum += lse[i] * d_lse->second[i];
  }
  return sum;
}

void expect_attention_gradients(const Layer& layer, openmsa_op forward, openmsa_op backward) {
  const auto loss = [&](const Layer& at) { return loss_of(at, forward); };
  Layer saved = layer;
  const TensorMap gradients = run(saved.add(run(layer, forward, {"o", "lse"})), backward);
  for (const char* name : {"q", "k", "v"}) {
    expect_gradient(layer, name, gradients.at(std::string("d_") + name), loss);
  }
}

TEST(AttentionBackward, SparseMatchesFiniteDifferences) {
  Layer layer = small_layer();
  layer.add(run(layer, OPENMSA_OP_SELECT_BLOCKS));
  expect_attention_gradients(layer, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
}

TEST(AttentionBackward, DenseMatchesFiniteDifferences) {
  expect_attention_gradients(small_layer(), OPENMSA_OP_DENSE_ATTENTION, OPENMSA_OP_DENSE_ATTENTION_BACKWARD);
}

TEST(AttentionBackward, WithAGradientIntoLseMatchesFiniteDifferences) {
  Layer layer = small_layer();
  std::mt19937_64 random(2);
  layer.tensors["d_lse"] = random_buffer(OPENMSA_FLOAT64, {layer.total_q(), 4}, random);
  expect_attention_gradients(layer, OPENMSA_OP_DENSE_ATTENTION, OPENMSA_OP_DENSE_ATTENTION_BACKWARD);
  layer.add(run(layer, OPENMSA_OP_SELECT_BLOCKS));
  expect_attention_gradients(layer, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
}

TEST(AttentionBackward, TheGradientIntoLseFollowsTheProbabilities) {
  // p = (1/4, 3/4) as below, d_o = 0, d_lse = 2: ds = p d_lse = (1/2, 3/2); d_q = ds k = 3/2 log 3; d_k = ds q; d_v = 0.
  Layer layer = hand_layer(1, 1, 2);
  set_channel0(layer, "q", 0, 0, 1);
  set_channel0(layer, "k", 1, 0, std::log(3));
  set_channel0(layer, "v", 1, 0, 1);
  layer.tensors.at("d_o").fill(0);
  layer.tensors["d_lse"] = Buffer(OPENMSA_FLOAT32, {1, 1}, {2});
  layer.add(run(layer, OPENMSA_OP_DENSE_ATTENTION));
  const TensorMap out = run(layer, OPENMSA_OP_DENSE_ATTENTION_BACKWARD);
  EXPECT_NEAR(out.at("d_q").at({0, 0, 0}), 3.0 / 2 * std::log(3), 1e-15);
  EXPECT_NEAR(out.at("d_k").at({0, 0, 0}), 1.0 / 2, 1e-15);
  EXPECT_NEAR(out.at("d_k").at({1, 0, 0}), 3.0 / 2, 1e-15);
  EXPECT_EQ(out.at("d_v").at({1, 0, 0}), 0);
}

TEST(AttentionBackward, TwoTokensByHand) {
  // p = (1/4, 3/4) from q = 1, k = (0, log 3); v = (0, 1), d_o = 1: o = 3/4, D = 3/4.
  // ds = (1/4 (0 - 3/4), 3/4 (1 - 3/4)) = (-3/16, 3/16); d_q = 3/16 log 3; d_k = ds q; d_v = p.
  Layer layer = hand_layer(1, 1, 2);
  set_channel0(layer, "q", 0, 0, 1);
  set_channel0(layer, "k", 1, 0, std::log(3));
  set_channel0(layer, "v", 1, 0, 1);
  layer.tensors.at("d_o").fill(0);
  set_channel0(layer, "d_o", 0, 0, 1);
  layer.add(run(layer, OPENMSA_OP_DENSE_ATTENTION));
  const TensorMap out = run(layer, OPENMSA_OP_DENSE_ATTENTION_BACKWARD);
  EXPECT_NEAR(out.at("d_q").at({0, 0, 0}), 3.0 / 16 * std::log(3), 1e-15);
  EXPECT_NEAR(out.at("d_k").at({0, 0, 0}), -3.0 / 16, 1e-15);
  EXPECT_NEAR(out.at("d_k").at({1, 0, 0}), 3.0 / 16, 1e-15);
  EXPECT_NEAR(out.at("d_v").at({0, 0, 0}), 1.0 / 4, 1e-15);
  EXPECT_NEAR(out.at("d_v").at({1, 0, 0}), 3.0 / 4, 1e-15);
}

}  // namespace
}  // namespace openmsa::test
