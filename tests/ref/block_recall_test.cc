#include <gtest/gtest.h>

#include "ref/hand.h"

namespace openmsa::test {
namespace {

/// The last of 20 tokens with q = 0: each carries 1/20, the three blocks 8/20, 8/20 and 4/20.
TensorMap recall_of(const std::vector<std::int64_t>& chosen) {
  Layer layer = hand_layer(2, 1, 20);
  layer.add({{"topk_indices", int_buffer(chosen, {1, 1, 2})}});
  return run(layer, OPENMSA_OP_BLOCK_RECALL);
}

TEST(BlockRecall, ComparesWithTheHeaviestBlocks) {
  // Heaviest two: 0 and 1 (the tie does not matter). Chosen 0 and 2: one of two.
  const TensorMap out = recall_of({0, 2});
  EXPECT_DOUBLE_EQ(out.at("block_recall")[0], 0.5);
  EXPECT_DOUBLE_EQ(out.at("score_recall")[0], 12.0 / 20);
}

TEST(BlockRecall, TiesGoToTheLowerBlock) {
  // Heaviest one of two equal ones: block 0.
  EXPECT_DOUBLE_EQ(recall_of({1, -1}).at("block_recall")[0], 0);
  EXPECT_DOUBLE_EQ(recall_of({0, -1}).at("block_recall")[0], 1);
  EXPECT_DOUBLE_EQ(recall_of({1, -1}).at("score_recall")[0], 8.0 / 20);
}

TEST(BlockRecall, AveragesTheHeadsOfAGroup) {
  // Head 0 puts nearly everything on token 16 in block 2, head 1 spreads evenly: mass (4, 4, 2 + 10) / 20.
  Layer layer = hand_layer(2, 1, 20);
  set_channel0(layer, "q", 0, 0, 100);
  set_channel0(layer, "k", 16, 0, 1);
  layer.add({{"topk_indices", int_buffer({2, -1}, {1, 1, 2})}});
  const TensorMap out = run(layer, OPENMSA_OP_BLOCK_RECALL);
  EXPECT_DOUBLE_EQ(out.at("block_recall")[0], 1);
  EXPECT_NEAR(out.at("score_recall")[0], 0.6, 1e-12);
}

TEST(BlockRecall, AQueryThatSeesNothingMissesNothing) {
  Layer layer = hand_layer(1, 3, 2);  // the first query stands at position -1
  layer.add({{"topk_indices", int_buffer({-1, -1, 0, -1, 0, -1}, {1, 3, 2})}});
  const TensorMap out = run(layer, OPENMSA_OP_BLOCK_RECALL);
  EXPECT_EQ(out.at("block_recall")[0], 1);
  EXPECT_EQ(out.at("score_recall")[0], 1);
  EXPECT_NEAR(out.at("score_recall")[2], 1, 1e-15);
}

}  // namespace
}  // namespace openmsa::test
