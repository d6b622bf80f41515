#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "ref/hand.h"
#include "support/finite_differences.h"

namespace openmsa::test {
namespace {

/// One query on two tokens, two heads with q.k = (0, 0) and (0, log 9): probabilities (1/2, 1/2) and (1/10, 9/10), mean
/// P = (3/10, 7/10). (The mean of the logits would be (1/4, 3/4).) index_q = 0: P_idx = (1/2, 1/2).
Layer two_heads() {
  Layer layer = hand_layer(2, 1, 2);
  set_channel0(layer, "q", 0, 1, 1);
  set_channel0(layer, "k", 1, 0, std::log(9));
  set_channel0(layer, "index_k", 0, 0, 3);
  set_channel0(layer, "index_k", 1, 0, 3);
  return layer.add(run(layer, OPENMSA_OP_DENSE_ATTENTION));
}

/// Pitfall 20: the teacher is a mean of probabilities, in natural logarithms.
TEST(KlLoss, AveragesProbabilitiesNotLogits) {
  const TensorMap out = run(two_heads(), OPENMSA_OP_KL_LOSS);
  EXPECT_NEAR(out.at("kl_loss")[0], 0.3 * std::log(0.3 / 0.5) + 0.7 * std::log(0.7 / 0.5), 1e-15);
}

TEST(KlLoss, GradientIsTheDifferenceOfTheDistributions) {
  // index_k = (1, 2), index_q = 0: g = (1/2 - 3/10, 1/2 - 7/10) = (1/5, -1/5);
  // d_index_q = 1/4 (1/5 * 1 - 1/5 * 2) = -1/20. With index_q = 4 on index_k = (3, 3) P_idx stays even, and
  // d_index_k = 1/4 * g * 4 = (1/5, -1/5).
  Layer layer = two_heads();
  set_channel0(layer, "index_q", 0, 0, 4);
  const Buffer d_index_k = run(layer, OPENMSA_OP_KL_LOSS).at("d_index_k");
  EXPECT_NEAR(d_index_k.at({0, 0}), 0.2, 1e-15);
  EXPECT_NEAR(d_index_k.at({1, 0}), -0.2, 1e-15);
  set_channel0(layer, "index_q", 0, 0, 0);
  set_channel0(layer, "index_k", 0, 0, 1);
  set_channel0(layer, "index_k", 1, 0, 2);
  EXPECT_NEAR(run(layer, OPENMSA_OP_KL_LOSS).at("d_index_q").at({0, 0, 0}), -0.05, 1e-15);
}

TEST(KlLoss, IsASumOfWeightedDivergences) {
  // The query of two_heads twice, with weights 5 and -1/2; both see the same keys, as sequences of their own.
  const Layer one = two_heads();
  LayerShape shape = one.shape;
  shape.seqlens_q = {1, 1};
  shape.seqlens_k = {2, 2};
  Layer two = make_layer(shape).on(OPENMSA_BACKEND_REFERENCE);
  two.config.softmax_scale = 1;
  for (const char* name : {"q", "k", "index_q", "index_k"}) {
    std::vector<double> values = one.tensors.at(name).values();
    values.insert(values.end(), values.begin(), values.end());
    two.tensors.at(name).assign(values);
  }
  two.add(run(two, OPENMSA_OP_DENSE_ATTENTION));
  two.tensors["kl_weights"] = Buffer(OPENMSA_FLOAT64, {2}, {5, -0.5});
  const TensorMap alone = run(one, OPENMSA_OP_KL_LOSS), out = run(two, OPENMSA_OP_KL_LOSS);
  EXPECT_NEAR(out.at("kl_loss")[0], 4.5 * alone.at("kl_loss")[0], 1e-15);
  for (const char* name : {"d_index_q", "d_index_k"}) {
    const Buffer &gradient = out.at(name), &expected = alone.at(name);
    for (std::int64_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(gradient[i], 5 * expected[i], 1e-15) << name;
      EXPECT_NEAR(gradient[expected.size() + i], -0.5 * expected[i], 1e-15) << name;
    }
  }
}

TEST(KlLoss, OneVisibleTokenCostsNothing) {
  Layer layer = hand_layer(2, 1, 1);
  set_channel0(layer, "q", 0, 0, 1e3);
  set_channel0(layer, "k", 0, 0, 1e3);
  layer.add(run(layer, OPENMSA_OP_DENSE_ATTENTION));
  const TensorMap out = run(layer, OPENMSA_OP_KL_LOSS);
  EXPECT_EQ(out.at("kl_loss")[0], 0);
  for (const double value : out.at("d_index_q").values()) EXPECT_EQ(value, 0);
}

TEST(KlLoss, RowsOfNoSequenceDoNotCount) {
  Layer layer = two_heads();
  const double alone = run(layer, OPENMSA_OP_KL_LOSS).at("kl_loss")[0];
  LayerShape shape = layer.shape;
  shape.padding_q = 2;
  Layer padded = make_layer(shape).on(OPENMSA_BACKEND_REFERENCE);
  padded.config.softmax_scale = 1;
  for (const char* name : {"q", "index_q"}) {
    padded.tensors.at(name).fill(0);
    for (std::int64_t i = 0; i < layer.tensors.at(name).size(); ++i) {
      padded.tensors.at(name).set(i, layer.tensors.at(name)[i]);
    }
  }
  padded.add({{"k", layer.tensors.at("k")}, {"v", layer.tensors.at("v")}, {"index_k", layer.tensors.at("index_k")}});
  padded.add(run(padded, OPENMSA_OP_DENSE_ATTENTION));
  EXPECT_EQ(run(padded, OPENMSA_OP_KL_LOSS).at("kl_loss")[0], alone);
}

/// The loss with the teacher's lse recomputed, as a function of all inputs.
double loss_of(Layer layer, openmsa_op forward) {
  layer.add(run(layer, forward, {"o", "lse"}));
  return run(layer, OPENMSA_OP_KL_LOSS, {"kl_loss"}).at("kl_loss")[0];
}

void expect_kl_gradients(const Layer& layer, openmsa_op forward) {
  Layer saved = layer;
  saved.add(run(layer, forward, {"o", "lse"}));
  const TensorMap gradients = run(saved, OPENMSA_OP_KL_LOSS, {"kl_loss", "d_q", "d_k", "d_index_q", "d_index_k"});
  for (const char* name : {"index_q", "index_k", "q", "k"}) {
    expect_gradient(layer, name, gradients.at(std::string("d_") + name),
                    [&](const Layer& at) { return loss_of(at, forward); });
  }
}

TEST(KlLoss, OverTheSelectionMatchesFiniteDifferences) {
  Layer layer = small_layer();
  layer.add(run(layer, OPENMSA_OP_SELECT_BLOCKS));
  expect_kl_gradients(layer, OPENMSA_OP_SPARSE_ATTENTION);
}

TEST(KlLoss, OverTheWholeHistoryMatchesFiniteDifferences) {
  expect_kl_gradients(small_layer(), OPENMSA_OP_DENSE_ATTENTION);
}

TEST(KlLoss, WithWeightsMatchesFiniteDifferences) {
  Layer layer = small_layer();
  std::mt19937_64 random(2);
  layer.tensors["kl_weights"] = random_buffer(OPENMSA_FLOAT64, {layer.total_q()}, random);
  layer.tensors["kl_weights"].set(3, 0);
  expect_kl_gradients(layer, OPENMSA_OP_DENSE_ATTENTION);
}

}  // namespace
}  // namespace openmsa::test
