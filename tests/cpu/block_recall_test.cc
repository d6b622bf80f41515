#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

class BlockRecall : public testing::TestWithParam<NamedShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, BlockRecall, testing::ValuesIn(contiguous_shapes()), shape_name);

TEST_P(BlockRecall, MatchesTheReference) {
  Layer layer = make_layer(GetParam().shape);
  layer.add(run(layer.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_SELECT_BLOCKS));
  const TensorMap got = run(layer, OPENMSA_OP_BLOCK_RECALL);
  const TensorMap expected = run(layer.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_BLOCK_RECALL);
  EXPECT_LT(absolute_error(got.at("score_recall"), expected.at("score_recall")), 1e-5);
  EXPECT_LT(absolute_error(got.at("block_recall"), expected.at("block_recall")), 1e-6);
}

/// Blocks after the query and unused slots do not count as chosen. Keys of zero spread the mass evenly, so that the
/// heaviest n visible blocks are the first n of equal size.
TEST(BlockRecallEdges, BlocksAfterTheQueryDoNotCount) {
  for (const openmsa_backend backend : {OPENMSA_BACKEND_REFERENCE, OPENMSA_BACKEND_CPU}) {
    Layer layer =
        make_layer({.num_heads_q = 2, .num_heads_kv = 1, .topk = 3, .seqlens_q = {4}, .seqlens_k = {97}}).on(backend);
    layer.tensors.at("k").fill(0);
    // Positions 93, 94 and 95 lie in block 2, 96 in block 3.
    layer.add({{"topk_indices", int_buffer({3, 0, -1, 3, -1, -1, 0, 3, 1, 3, 1, -1}, {1, 4, 3})}});
    const TensorMap out = run(layer, OPENMSA_OP_BLOCK_RECALL);
    EXPECT_THAT(out.at("block_recall").values(), testing::ElementsAre(1, 0, 1, 0.5));
    EXPECT_NEAR(out.at("score_recall")[0], 32.0 / 94, 1e-6);
    EXPECT_EQ(out.at("score_recall")[1], 0);
    EXPECT_NEAR(out.at("score_recall")[2], 64.0 / 96, 1e-6);
    EXPECT_NEAR(out.at("score_recall")[3], 33.0 / 97, 1e-6);
  }
}

}  // namespace
}  // namespace openmsa::test
