// The index branch of the CPU backend against the float64 reference.
#include <gtest/gtest.h>

#include <cmath>

#include "support/compare.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

class Selection : public testing::TestWithParam<NamedShape> {
 protected:
  const Layer layer_ = make_layer(GetParam().shape);
  const Layer reference_ = layer_.on(OPENMSA_BACKEND_REFERENCE);
};
INSTANTIATE_TEST_SUITE_P(Shapes, Selection, testing::ValuesIn(all_shapes()), shape_name);
INSTANTIATE_TEST_SUITE_P(Fp8Shapes, Selection, testing::ValuesIn(fp8_shapes()), shape_name);

TEST_P(Selection, ScoresMatchTheReference) {
  const Buffer scores = run(layer_, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  const Buffer expected = run(reference_, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  // Products of index_dim terms of size 1: rounding in fp32 stays near 1e-7 of their sum of magnitudes.
  EXPECT_LT(absolute_error(scores, expected), 1e-5);
}

TEST_P(Selection, ChosenBlocksMatchTheReference) {
  const Buffer scores = run(reference_, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  const Buffer expected = run(reference_, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  expect_same_selection(layer_, run(layer_, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"), expected, scores);
}

TEST_P(Selection, FusedEqualsScoresThenTopk) {
  Layer staged = layer_;
  staged.add(run(layer_, OPENMSA_OP_BLOCK_SCORES));
  const Buffer chosen = run(layer_, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  EXPECT_TRUE(chosen.same_bits(run(staged, OPENMSA_OP_TOPK).at("topk_indices")));
  EXPECT_TRUE(chosen.same_bits(run(layer_, OPENMSA_OP_MSA_ATTENTION).at("topk_indices")));
}

/// A token whose score is NaN loses inside its block; a block of nothing but such tokens scores NaN.
TEST(SelectionOfNan, ScoresAreNanWhereTheReferenceHasNan) {
  for (const std::int64_t seqlen_q : {5, 100}) {
    Layer layer = make_layer({.seqlens_q = {seqlen_q}, .seqlens_k = {200}});
    Buffer& index_k = layer.tensors.at("index_k");
    for (const std::int64_t token : {3, 40, 64, 65, 195}) index_k.set({token, 7}, std::nan(""));
    for (std::int64_t token = 96; token < 128; ++token) index_k.set({token, 0}, std::nan(""));
    for (std::int64_t token = 128; token < 160; ++token) index_k.set({token, 1}, token == 130 ? -INFINITY : NAN);
    const Buffer scores = run(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
    const Buffer expected = run(layer.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_BLOCK_SCORES).at("block_scores");
    for (std::int64_t i = 0; i < scores.size(); ++i) {
      if (std::isnan(expected[i])) {
        EXPECT_TRUE(std::isnan(scores[i])) << "element " << i;
      } else if (std::isinf(expected[i])) {
        EXPECT_EQ(scores[i], expected[i]) << "element " << i;
      } else {
        EXPECT_NEAR(scores[i], expected[i], 1e-5) << "element " << i;
      }
    }
    const Layer judge = layer.on(OPENMSA_BACKEND_REFERENCE);
    EXPECT_TRUE(run(layer, OPENMSA_OP_SELECT_BLOCKS)
                    .at("topk_indices")
                    .same_bits(run(judge, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices")));
  }
}

/// Few levels of score over many kv_blocks: the last places in a selection are decided between equal scores, within and
/// across the parts that decode is split into.
TEST(SelectionOfTies, EqualScoresGoToTheLowerBlockAsInTheReference) {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    const std::int64_t seqlen_q = seed % 2 == 0 ? 3 : 40;
    Layer layer = make_layer({.block_size = 16, .topk = 6, .seqlens_q = {seqlen_q}, .seqlens_k = {1000}});
    std::mt19937_64 random(seed);
    layer.tensors.at("index_k").fill(0);
    for (std::int64_t token = 0; token < 1000; token += 16) {
      layer.tensors.at("index_k").set({token, 0}, static_cast<double>(random() % 12));
    }
    layer.tensors.at("index_q").fill(1);
    const Buffer got = run(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
    const Layer judge = layer.on(OPENMSA_BACKEND_REFERENCE);
    EXPECT_TRUE(got.same_bits(run(judge, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"))) << "seed " << seed;
  }
}

}  // namespace
}  // namespace openmsa::test
