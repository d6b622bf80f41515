// The index branch on every backend: block scores, selection, and top-k over stored scores, against the float64
// reference.
#include <gtest/gtest.h>

#include <cmath>

#include "pitfalls/fixture.h"
#include "support/compare.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

/// Rounding of sums of index_dim products of size 1: in fp32, in the order of a CPU or of tensor cores; those of fp8
/// keep some 13 bits of the larger sums.
double score_error(const Layer& layer) {
  if (layer.config.backend != OPENMSA_BACKEND_CUDA) return 1e-5;
  return layer.index_dtype() == OPENMSA_FLOAT8_E4M3 ? 2e-3 : 1e-4;
}

using Selection = OnBackendShape;
INSTANTIATE_TEST_SUITE_P(Shapes, Selection, testing::ValuesIn(selection_shapes()), backend_shape_name);

TEST_P(Selection, ScoresMatchTheReference) {
  EXPECT_LT(absolute_error(run(layer_, OPENMSA_OP_BLOCK_SCORES).at("block_scores"),
                           judged(layer_, OPENMSA_OP_BLOCK_SCORES).at("block_scores")),
            score_error(layer_));
}

TEST_P(Selection, ChosenBlocksMatchTheReference) {
  expect_selection(layer_, run(layer_, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"));
}

TEST_P(Selection, TopkOfReferenceScoresIsExact) {
  layer_.tensors["block_scores"] = judged(layer_, OPENMSA_OP_BLOCK_SCORES).at("block_scores").as(OPENMSA_FLOAT32);
  expect_same_bits(run(layer_, OPENMSA_OP_TOPK), judged(layer_, OPENMSA_OP_TOPK));
}

TEST_P(Selection, FusedEqualsScoresThenTopk) {
  if (GetParam().backend == OPENMSA_BACKEND_CUDA) GTEST_SKIP() << "its two ways may round scores differently";
  const Buffer chosen = run(layer_, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  layer_.add(run(layer_, OPENMSA_OP_BLOCK_SCORES));
  EXPECT_TRUE(chosen.same_bits(run(layer_, OPENMSA_OP_TOPK).at("topk_indices")));
}

class SelectionRules : public OnBackend {};
INSTANTIATE_TEST_SUITE_P(Backends, SelectionRules, testing::ValuesIn(judged_backends()), backend_test_name);

/// Five levels of score: nearly every place in the selection is decided between equal scores, within and across the
/// parts that the keys of few queries are split into.
TEST_P(SelectionRules, EqualScoresGoToTheLowerBlock) {
  for (const std::int64_t seqlen_q : {1, 16, 300}) {
    for (const std::int32_t topk : {1, 6, 40}) {
      SCOPED_TRACE(testing::Message() << seqlen_q << " queries, topk " << topk);
      Layer equal = layer({.topk = topk, .seqlens_q = {seqlen_q}, .seqlens_k = {5000}});
      std::mt19937_64 random(5);
      equal.tensors.at("index_k").fill(0);
      for (std::int64_t token = 0; token < 5000; token += block()) {
        equal.tensors.at("index_k").set({token, 0}, static_cast<double>(random() % 5));
      }
      equal.tensors.at("index_q").fill(1);
      const TensorMap expected = judged(equal, OPENMSA_OP_SELECT_BLOCKS);
      expect_same_bits(run(equal, OPENMSA_OP_SELECT_BLOCKS), expected);
      equal.add(run(equal, OPENMSA_OP_BLOCK_SCORES));
      expect_same_bits(run(equal, OPENMSA_OP_TOPK), expected);
    }
  }
}

/// A token whose score is NaN loses inside its block; a block of nothing but such tokens scores NaN and loses too.
TEST_P(SelectionRules, NanAndInfScoresAreThoseOfTheReference) {
  for (const std::int64_t seqlen_q : {5, 300}) {
    Layer odd = layer({.topk = 3, .seqlens_q = {seqlen_q}, .seqlens_k = {20 * block() + 7}});
    Buffer& index_k = odd.tensors.at("index_k");
    for (const std::int64_t token : {3, block() - 1, block(), 20 * block() + 2}) index_k.set({token, 7}, kNan);
    fill_rows(index_k, 3 * block(), 4 * block(), kNan);
    for (std::int64_t token = 4 * block(); token < 5 * block(); ++token) {
      index_k.set({token, 1}, token == 4 * block() + 9 ? -kInf : kNan);
    }
    index_k.set({6 * block() + 1, 2}, kInf);
    const Buffer scores = run(odd, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
    const Buffer expected = judged(odd, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
    for (std::int64_t i = 0; i < scores.size(); ++i) {
      const bool same = std::isnan(expected[i])
                            ? std::isnan(scores[i])
                            : scores[i] == expected[i] || std::abs(scores[i] - expected[i]) < score_error(odd);
      ASSERT_TRUE(same) << "element " << i << ": " << scores[i] << " instead of " << expected[i];
    }
    const TensorMap chosen = judged(odd, OPENMSA_OP_SELECT_BLOCKS);
    expect_same_bits(run(odd, OPENMSA_OP_SELECT_BLOCKS), chosen);
    odd.tensors["block_scores"] = scores;
    expect_same_bits(run(odd, OPENMSA_OP_TOPK), chosen);
  }
}

}  // namespace
}  // namespace openmsa::test
