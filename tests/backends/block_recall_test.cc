// Health of a selection on every backend.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/selections.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

std::vector<BackendShape> contiguous_attention_shapes() {
  std::vector<BackendShape> shapes = attention_shapes();
  std::erase_if(shapes, [](const BackendShape& shape) { return shape.named.shape.page_size != 0; });
  return shapes;
}

class BlockRecall : public OnBackendShape {
 protected:
  /// Both figures are the judge's. Sums in fp32 of exponentials that a GPU approximates are a little further off.
  static void expect_recall(const Layer& layer) {
    const TensorMap got = run(layer, OPENMSA_OP_BLOCK_RECALL);
    const TensorMap expected = run_on_host(layer.on(quick_judge(layer)), OPENMSA_OP_BLOCK_RECALL);
    const double allowed = layer.config.backend == OPENMSA_BACKEND_CUDA ? 1e-4 : 1e-5;
    EXPECT_LT(absolute_error(got.at("score_recall"), expected.at("score_recall")), allowed);
    EXPECT_LT(absolute_error(got.at("block_recall"), expected.at("block_recall")), 1e-6);
  }
};
INSTANTIATE_TEST_SUITE_P(Shapes, BlockRecall, testing::ValuesIn(contiguous_attention_shapes()), backend_shape_name);

TEST_P(BlockRecall, OfTheIndexBranchesSelection) {
  layer_.add(run_on_host(layer_.on(quick_judge(layer_)), OPENMSA_OP_SELECT_BLOCKS));
  expect_recall(layer_);
}

/// Unsorted, some of the blocks later than the query, rows with few blocks or none.
TEST_P(BlockRecall, OfRandomBlocksInAnyOrder) {
  layer_.add({{"topk_indices", random_selection(layer_, 3)}});
  expect_recall(layer_);
}

TEST_P(BlockRecall, EitherFigureAlone) {
  layer_.add({{"topk_indices", random_selection(layer_, 4)}});
  const TensorMap both = run(layer_, OPENMSA_OP_BLOCK_RECALL);
  for (const char* name : {"block_recall", "score_recall"}) {
    EXPECT_TRUE(run(layer_, OPENMSA_OP_BLOCK_RECALL, {name}).at(name).same_bits(both.at(name))) << name;
  }
}

using BlockRecallEdges = OnBackend;
INSTANTIATE_TEST_SUITE_P(Backends, BlockRecallEdges, testing::ValuesIn(backends()), backend_test_name);

/// Blocks after the query and unused slots do not count as chosen. Keys of zero spread the mass evenly, so that the
/// heaviest n visible blocks are the first n of equal size.
TEST_P(BlockRecallEdges, BlocksAfterTheQueryDoNotCount) {
  const std::int64_t length = 3 * block() + 1;
  const auto keys = static_cast<double>(length), size = static_cast<double>(block());
  Layer even =
      layer({.num_heads_q = 2, .num_heads_kv = 1, .topk = 3, .seqlens_q = {4}, .seqlens_k = {length}, .padding_q = 1});
  even.tensors.at("k").fill(0);
  // The first three queries stand in block 2, the last one in block 3.
  even.add({{"topk_indices", int_buffer({3, 0, -1, 3, -1, -1, 0, 3, 1, 3, 1, -1, -1, -1, -1}, {1, 5, 3})}});
  const TensorMap out = run(even, OPENMSA_OP_BLOCK_RECALL);
  EXPECT_THAT(out.at("block_recall").values(), testing::ElementsAre(1, 0, 1, 0.5, 1));
  EXPECT_NEAR(out.at("score_recall")[0], size / (keys - 3), 1e-6);
  EXPECT_EQ(out.at("score_recall")[1], 0);
  EXPECT_NEAR(out.at("score_recall")[2], 2 * size / (keys - 1), 1e-6);
  EXPECT_NEAR(out.at("score_recall")[3], (size + 1) / keys, 1e-6);
  EXPECT_EQ(out.at("score_recall")[4], 1);
}

}  // namespace
}  // namespace openmsa::test
