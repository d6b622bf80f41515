#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ref/hand.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNear = 1e-14;

/// The last query of `seqlen_k` tokens. Head 0 has q = 1, head 1 has q = 0; k[j] = log(j + 1) and v[j] = j, so that
/// head 0 weighs token j with j + 1 and head 1 weighs all alike.
Layer counting_layer(std::int64_t seqlen_k) {
  Layer layer = hand_layer(2, 1, seqlen_k);
  set_channel0(layer, "q", 0, 0, 1);
  for (std::int64_t j = 0; j < seqlen_k; ++j) {
    set_channel0(layer, "k", j, 0, std::log(j + 1));
    set_channel0(layer, "v", j, 0, static_cast<double>(j));
  }
  return layer;
}

TEST(DenseAttention, WeighsAllVisibleTokens) {
  // Weights 1, 2, 3: lse = log 6, o = (0*1 + 1*2 + 2*3) / 6. Equal weights: lse = log 3, o = 1.
  const TensorMap out = run(counting_layer(3), OPENMSA_OP_DENSE_ATTENTION);
  EXPECT_NEAR(out.at("lse").at({0, 0}), std::log(6), kNear);
  EXPECT_NEAR(out.at("lse").at({0, 1}), std::log(3), kNear);
  EXPECT_NEAR(out.at("o").at({0, 0, 0}), 8.0 / 6, kNear);
  EXPECT_NEAR(out.at("o").at({0, 1, 0}), 1, kNear);
  EXPECT_EQ(out.at("o").at({0, 0, 1}), 0);
}

TEST(SparseAttention, WeighsTheChosenTokensAlone) {
  // Position 17, blocks 0 and 2: tokens 0-7, 16, 17 with weights 1-8, 17, 18, together 71.
  // o = (sum over j = 0..7 of j(j+1) + 16*17 + 17*18) / 71 = (168 + 578) / 71.
  Layer layer = counting_layer(18);
  layer.add({{"topk_indices", int_buffer({2, 0}, {1, 1, 2})}});
  const TensorMap out = run(layer, OPENMSA_OP_SPARSE_ATTENTION);
  EXPECT_NEAR(out.at("lse").at({0, 0}), std::log(71), kNear);
  EXPECT_NEAR(out.at("o").at({0, 0, 0}), 746.0 / 71, 1e-13);
  EXPECT_NEAR(out.at("lse").at({0, 1}), std::log(10), kNear);
  EXPECT_NEAR(out.at("o").at({0, 1, 0}), (28 + 33) / 10.0, kNear);
}

TEST(SparseAttention, NothingChosenGivesZero) {
  Layer layer = counting_layer(18);
  layer.add({{"topk_indices", int_buffer({-1, -1}, {1, 1, 2})}});
  const TensorMap out = run(layer, OPENMSA_OP_SPARSE_ATTENTION);
  EXPECT_EQ(out.at("lse").at({0, 0}), -kInf);
  for (const double value : out.at("o").values()) EXPECT_EQ(value, 0);
}

TEST(MsaAttention, SelectsThenAttends) {
  // Position 17. index_q = 4 scores block 1 highest among 0 and 1, block 2 is local: tokens 8-15, 16, 17 with weights
  // 9-16, 17, 18, together 135.
  Layer layer = counting_layer(18);
  set_channel0(layer, "index_q", 0, 0, 4);
  set_channel0(layer, "index_k", 3, 0, 1);
  set_channel0(layer, "index_k", 9, 0, 2);
  const TensorMap out = run(layer, OPENMSA_OP_MSA_ATTENTION);
  EXPECT_THAT(selection_row(out.at("topk_indices"), 0, 0), testing::ElementsAre(1, 2));
  EXPECT_NEAR(out.at("lse").at({0, 0}), std::log(135), kNear);
}

TEST(MsaAttention, DefaultScaleIsOneOverTheRootOfHeadDim) {
  // 1/sqrt(16) on q = 4 is the same as 1 on q = 1.
  Layer layer = counting_layer(3);
  layer.config.softmax_scale = 0;
  set_channel0(layer, "q", 0, 0, 4);
  EXPECT_NEAR(run(layer, OPENMSA_OP_DENSE_ATTENTION).at("lse").at({0, 0}), std::log(6), kNear);
}

TEST(MsaAttention, Float32ReferenceDiffersByRoundingAlone) {
  const Layer layer = make_layer({.seqlens_q = {60, 7}, .seqlens_k = {60, 90}});
  const TensorMap fine = run(layer.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_MSA_ATTENTION);
  const TensorMap coarse = run(layer.on(OPENMSA_BACKEND_REFERENCE_FLOAT32), OPENMSA_OP_MSA_ATTENTION);
  EXPECT_LT(relative_error(coarse.at("o"), fine.at("o")), 1e-6);
  EXPECT_LT(absolute_error(coarse.at("lse"), fine.at("lse")), 1e-5);
  EXPECT_FALSE(coarse.at("lse").same_bits(fine.at("lse")));
}

}  // namespace
}  // namespace openmsa::test
