// The main branch of the CPU backend against the float64 reference.
#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

class Attention : public testing::TestWithParam<NamedShape> {
 protected:
  void expect_match(const TensorMap& got, const TensorMap& expected) const {
    const Tolerance allowed = tolerance(layer_.config.dtype);
    EXPECT_LT(relative_error(got.at("o"), expected.at("o")), allowed.o);
    EXPECT_LT(absolute_error(got.at("lse"), expected.at("lse")), allowed.lse);
  }

  Layer layer_ = make_layer(GetParam().shape);
};
INSTANTIATE_TEST_SUITE_P(Shapes, Attention, testing::ValuesIn(all_shapes()), shape_name);
INSTANTIATE_TEST_SUITE_P(Fp8Shapes, Attention, testing::ValuesIn(fp8_shapes()), shape_name);

TEST_P(Attention, SparseMatchesTheReference) {
  layer_.add(run(layer_.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_SELECT_BLOCKS));
  expect_match(run(layer_, OPENMSA_OP_SPARSE_ATTENTION),
               run(layer_.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_SPARSE_ATTENTION));
}

TEST_P(Attention, DenseMatchesTheReference) {
  expect_match(run(layer_, OPENMSA_OP_DENSE_ATTENTION),
               run(layer_.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_DENSE_ATTENTION));
}

TEST_P(Attention, LayerIsAttentionOverItsOwnSelection) {
  const TensorMap whole = run(layer_, OPENMSA_OP_MSA_ATTENTION);
  layer_.add({{"topk_indices", whole.at("topk_indices")}});
  const TensorMap sparse = run(layer_, OPENMSA_OP_SPARSE_ATTENTION);
  expect_same_bits({{"o", whole.at("o")}, {"lse", whole.at("lse")}}, sparse);
  expect_match(whole, run(layer_.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_SPARSE_ATTENTION));
}

TEST_P(Attention, EqualsDenseWhenEveryBlockIsChosen) {
  LayerShape shape = GetParam().shape;
  shape.topk = 64;  // the longest sequence has 259 keys: 33 blocks of 8
  const Layer covered = make_layer(shape);
  expect_match(run(covered, OPENMSA_OP_MSA_ATTENTION),
               run(covered.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_DENSE_ATTENTION));
}

TEST_P(Attention, WithoutOptionalOutputsGivesTheSameResult) {
  const TensorMap all = run(layer_, OPENMSA_OP_MSA_ATTENTION);
  const TensorMap only_o = run(layer_, OPENMSA_OP_MSA_ATTENTION, {"o"});
  EXPECT_TRUE(all.at("o").same_bits(only_o.at("o")));
}

/// Lengths around every boundary of a block, and with fewer blocks than topk.
TEST(AttentionBoundaries, LengthsNextToABlock) {
  for (const std::int32_t block_size : {32, 64, 128}) {
    for (const std::int64_t length : {0, 1, 2, block_size - 1, block_size, block_size + 1, 2 * block_size - 1,
                                      2 * block_size, 2 * block_size + 1, 5 * block_size + 1}) {
      SCOPED_TRACE(testing::Message() << "block_size " << block_size << ", length " << length);
      const std::int64_t queries = std::min<std::int64_t>(length, 40);
      const Layer layer =
          make_layer({.block_size = block_size, .topk = 3, .seqlens_q = {queries, 1}, .seqlens_k = {length, length}});
      const TensorMap got = run(layer, OPENMSA_OP_MSA_ATTENTION);
      const TensorMap expected = run(layer.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_MSA_ATTENTION);
      EXPECT_TRUE(got.at("topk_indices").same_bits(expected.at("topk_indices")));
      EXPECT_LT(relative_error(got.at("o"), expected.at("o")), 1e-6);
      EXPECT_LT(absolute_error(got.at("lse"), expected.at("lse")), 1e-5);
    }
  }
}

/// Where a quarter of a million values nearly cancel, one running sum in fp32 would be too coarse.
TEST(AttentionBoundaries, DenseDecodeOfALongContextLosesNoDigits) {
  const Layer layer = make_layer({.num_heads_q = 4,
                                  .num_heads_kv = 1,
                                  .head_dim = 16,
                                  .index_dim = 16,
                                  .block_size = 128,
                                  .seqlens_q = {1},
                                  .seqlens_k = {1 << 18}});
  const TensorMap got = run(layer, OPENMSA_OP_DENSE_ATTENTION);
  const TensorMap expected = run(layer.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_DENSE_ATTENTION);
  EXPECT_LT(relative_error(got.at("o"), expected.at("o")), 1e-6);
}

/// A softmax_scale of one's own, and scores so large that only the running maximum keeps exp finite.
TEST(AttentionScale, LargeScoresDoNotOverflow) {
  Layer layer = make_layer({.seqlens_q = {50}, .seqlens_k = {90}});
  layer.config.softmax_scale = 40;
  const TensorMap got = run(layer, OPENMSA_OP_MSA_ATTENTION);
  const TensorMap expected = run(layer.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_MSA_ATTENTION);
  EXPECT_LT(relative_error(got.at("o"), expected.at("o")), 1e-3);  // rounding of scores near 1000 is 1e-4
  EXPECT_LT(relative_error(got.at("lse"), expected.at("lse")), 1e-6);
}

}  // namespace
}  // namespace openmsa::test
