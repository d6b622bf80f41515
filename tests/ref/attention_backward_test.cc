#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "ref/hand.h"
#include "support/finite_differences.h"

namespace openmsa::test {
namespace {

double weighted_sum(const Buffer& o, const Buffer& d_o) {
  double sum = 0;
  for (std::int64_t i = 0; i < o.size(); ++i) sum += o[i] * d_o[i];
  return sum;
}

void expect_attention_gradients(const Layer& layer, openmsa_op forward, openmsa_op backward) {
  const auto loss = [&](const Layer& at) {
    return weighted_sum(run(at, forward, {"o"}).at("o"), at.tensors.at("d_o"));
  };
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
