// The main branch over given selections and as the whole layer, on every backend.
#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/selections.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

using Attention = OnBackendShape;
INSTANTIATE_TEST_SUITE_P(Shapes, Attention, testing::ValuesIn(attention_shapes()), backend_shape_name);

TEST_P(Attention, OverTheReferenceSelection) {
  layer_.add(judged(layer_, OPENMSA_OP_SELECT_BLOCKS));
  expect_attention(layer_);
}

/// Unsorted, some of the blocks later than the query, rows with few blocks or none.
TEST_P(Attention, OverRandomBlocksInAnyOrder) {
  layer_.add({{"topk_indices", random_selection(layer_, 3)}});
  expect_attention(layer_, quick_judge(layer_));
}

TEST_P(Attention, OverClusteredBlocks) {
  layer_.add({{"topk_indices", clustered_selection(layer_, 3)}});
  expect_attention(layer_, quick_judge(layer_));
}

TEST_P(Attention, LayerIsAttentionOverItsOwnSelection) {
  const TensorMap whole = run(layer_, OPENMSA_OP_MSA_ATTENTION);
  EXPECT_TRUE(whole.at("topk_indices").same_bits(run(layer_, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices")));
  layer_.add({{"topk_indices", whole.at("topk_indices")}});
  expect_same_bits({{"o", whole.at("o")}, {"lse", whole.at("lse")}}, run(layer_, OPENMSA_OP_SPARSE_ATTENTION));
  expect_close(layer_, whole, judged(layer_, OPENMSA_OP_SPARSE_ATTENTION, quick_judge(layer_)));
}

TEST_P(Attention, EqualsDenseWhenEveryBlockIsChosen) {
  constexpr std::int32_t kMostTopk = 64;
  LayerShape shape = GetParam().named.shape;
  shape.topk = kMostTopk;
  const Layer covered = make_layer(shape).on(GetParam().backend);
  if (covered.max_blocks() > kMostTopk) GTEST_SKIP() << "the longest sequence has more kv_blocks than can be chosen";
  expect_close(covered, run(covered, OPENMSA_OP_MSA_ATTENTION),
               judged(covered, OPENMSA_OP_DENSE_ATTENTION, quick_judge(covered)));
}

TEST_P(Attention, WithoutOptionalOutputsGivesTheSameResult) {
  layer_.add({{"topk_indices", random_selection(layer_, 3)}});
  for (const openmsa_op op : {OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION}) {
    EXPECT_TRUE(run(layer_, op).at("o").same_bits(run(layer_, op, {"o"}).at("o"))) << "operation " << op;
  }
}

class AttentionEdges : public OnBackend {
 protected:
  /// Sequences that hold few blocks, one after the other, around every boundary of a kv_block.
  Layer next_to_a_block(std::int32_t block_size, std::int32_t page_size) const {
    LayerShape shape{.dtype = GetParam().dtype, .block_size = block_size, .topk = 3, .page_size = page_size};
    shape.seqlens_q.clear();
    shape.seqlens_k.clear();
    for (const std::int64_t length : {0, 1, 2, block_size - 1, block_size, block_size + 1, 2 * block_size - 1,
                                      2 * block_size, 2 * block_size + 1, 5 * block_size + 1}) {
      for (const std::int64_t queries : {1, 40}) {
        shape.seqlens_q.push_back(std::min(length, queries));
        shape.seqlens_k.push_back(length);
      }
    }
    return make_layer(shape).on(GetParam().id);
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionEdges, testing::ValuesIn(judged_backends()), backend_test_name);

/// In one batch, and each length in a batch whose plan is made for it.
TEST_P(AttentionEdges, LengthsNextToABlock) {
  for (std::int32_t block_size = block(); block_size <= 128; block_size *= 2) {
    for (const std::int32_t page_size : {0, 16, block_size}) {
      SCOPED_TRACE(testing::Message() << "block_size " << block_size << ", page_size " << page_size);
      expect_layer(next_to_a_block(block_size, page_size));
    }
    const Layer all = next_to_a_block(block_size, 0);
    for (std::size_t b = 0; b < all.shape.seqlens_k.size(); b += 2) {
      LayerShape pair = all.shape;
      pair.seqlens_q = {all.shape.seqlens_q[b + 1], 1};
      pair.seqlens_k = {all.shape.seqlens_k[b], all.shape.seqlens_k[b + 1]};
      SCOPED_TRACE(testing::Message() << "block_size " << block_size << ", length " << pair.seqlens_k[0]);
      expect_layer(make_layer(pair).on(GetParam().id));
    }
  }
}

/// A softmax_scale of one's own, and scores so large that only the running maximum keeps exp finite.
TEST_P(AttentionEdges, LargeScoresDoNotOverflow) {
  const LayerShape prompt{.topk = 4, .seqlens_q = {50}, .seqlens_k = {9 * block()}};
  const LayerShape decode{.topk = 12, .seqlens_q = {16, 1, 5}, .seqlens_k = {9000, 20001, 3 * block() + 1}};
  for (const LayerShape& shape : {prompt, decode}) {
    Layer large = layer(shape);
    large.config.softmax_scale = 40;
    large.add({{"topk_indices", random_selection(large, 6)}});
    const TensorMap got = run(large, OPENMSA_OP_SPARSE_ATTENTION);
    const TensorMap expected = judged(large, OPENMSA_OP_SPARSE_ATTENTION);
    // Rounding of scores near 1000 in fp32 is 1e-4.
    EXPECT_LT(relative_error(got.at("o"), expected.at("o")), std::max(1e-3, tolerance(large.config).o));
    EXPECT_LT(absolute_error(got.at("lse"), expected.at("lse")), 1e-2);
  }
}

}  // namespace
}  // namespace openmsa::test
