// The index branch on the GPU: block scores, selection, and top-k over stored scores, against the float64 reference.
#include <cmath>

#include "cuda/support/cases.h"
#include "cuda/support/judge.h"
#include "pitfalls/fixture.h"

namespace openmsa::test {
namespace {

using Selection = HopperShapes;
INSTANTIATE_TEST_SUITE_P(Shapes, Selection, testing::ValuesIn(hopper_shapes()), shape_name);

/// Rounding of fp32 sums of index_dim products of size 1.
constexpr double kScoreError = 1e-4;

TEST_P(Selection, ScoresMatchTheReference) {
  const Layer layer = make_layer(GetParam().shape);
  const Buffer scores = run_on_device(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  EXPECT_LT(absolute_error(scores, judged(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores")), kScoreError);
}

TEST_P(Selection, ChosenBlocksMatchTheReference) {
  const Layer layer = make_layer(GetParam().shape);
  expect_selection(layer, run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"));
}

TEST_P(Selection, TopkOfReferenceScoresIsExact) {
  Layer layer = make_layer(GetParam().shape);
  layer.add(judged(layer, OPENMSA_OP_BLOCK_SCORES));
  layer.tensors["block_scores"] = layer.tensors["block_scores"].as(OPENMSA_FLOAT32);
  expect_same_bits(run_on_device(layer, OPENMSA_OP_TOPK), judged(layer, OPENMSA_OP_TOPK));
}

class SelectionRules : public OnHopperWith<std::int32_t> {};
INSTANTIATE_TEST_SUITE_P(BlockSizes, SelectionRules, testing::Values(64, 128), testing::PrintToStringParamName());

TEST_P(SelectionRules, ForcedBlocksAreNeverTakenTwice) {
  for (const std::int32_t num_local_blocks : {0, 1, 2, 5}) {
    for (const std::int32_t num_init_blocks : {0, 1, 3, 5}) {
      for (const std::int32_t topk : {1, 3, 8, 20}) {
        SCOPED_TRACE(testing::Message() << num_local_blocks << " local, " << num_init_blocks << " init, " << topk);
        const Layer layer = make_layer({.dtype = OPENMSA_BFLOAT16,
                                        .block_size = GetParam(),
                                        .topk = topk,
                                        .num_init_blocks = num_init_blocks,
                                        .num_local_blocks = num_local_blocks,
                                        .seqlens_q = {20, GetParam() + 5},
                                        .seqlens_k = {9 * GetParam() + 3, GetParam() + 5}});
        expect_selection(layer, run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"));
        if (HasFailure()) return;
      }
    }
  }
}

/// Five levels of score: nearly every place in the selection is decided between equal scores, within and across the
/// parts that the keys of few queries are split into.
TEST_P(SelectionRules, EqualScoresGoToTheLowerBlock) {
  for (const std::int64_t seqlen_q : {1, 16, 300}) {
    for (const std::int32_t topk : {1, 6, 40}) {
      Layer layer = make_layer({.dtype = OPENMSA_BFLOAT16,
                                .block_size = GetParam(),
                                .topk = topk,
                                .seqlens_q = {seqlen_q},
                                .seqlens_k = {5000}});
      std::mt19937_64 random(5);
      layer.tensors.at("index_k").fill(0);
      for (std::int64_t token = 0; token < 5000; token += GetParam()) {
        layer.tensors.at("index_k").set({token, 0}, static_cast<double>(random() % 5));
      }
      layer.tensors.at("index_q").fill(1);
      const Buffer chosen = run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
      EXPECT_TRUE(chosen.same_bits(judged(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices")))
          << seqlen_q << " queries, topk " << topk;
      layer.add(run_on_device(layer, OPENMSA_OP_BLOCK_SCORES));
      EXPECT_TRUE(chosen.same_bits(run_on_device(layer, OPENMSA_OP_TOPK).at("topk_indices")))
          << seqlen_q << " queries, topk " << topk << ", over stored scores";
    }
  }
}

TEST_P(SelectionRules, ZerosPickTheLowestBlocksAndTheLocalOne) {
  for (const char* zero : {"index_q", "index_k"}) {
    Layer layer = make_layer({.dtype = OPENMSA_FLOAT16,
                              .block_size = GetParam(),
                              .topk = 3,
                              .seqlens_q = {100},
                              .seqlens_k = {20 * GetParam()}});
    layer.tensors.at(zero).fill(0);
    const Buffer chosen = run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
    EXPECT_EQ(selection_row(chosen, 0, 99), (std::vector<std::int64_t>{0, 1, 19})) << zero;
  }
}

/// A token whose score is NaN loses inside its block; a block of nothing but such tokens scores NaN and loses too.
TEST_P(SelectionRules, NanAndInfScoresAreThoseOfTheReference) {
  const std::int64_t block = GetParam();
  for (const std::int64_t seqlen_q : {5, 300}) {
    Layer layer = make_layer({.dtype = OPENMSA_BFLOAT16,
                              .block_size = GetParam(),
                              .topk = 3,
                              .seqlens_q = {seqlen_q},
                              .seqlens_k = {20 * block + 7}});
    Buffer& index_k = layer.tensors.at("index_k");
    for (const std::int64_t token : {std::int64_t{3}, block - 1, block, 20 * block + 2}) {
      index_k.set({token, 7}, kNan);
    }
    fill_rows(index_k, 3 * block, 4 * block, kNan);
    for (std::int64_t token = 4 * block; token < 5 * block; ++token) {
      index_k.set({token, 1}, token == 4 * block + 9 ? -kInf : kNan);
    }
    index_k.set({6 * block + 1, 2}, kInf);
    const Buffer scores = run_on_device(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
    const Buffer expected = judged(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
    for (std::int64_t i = 0; i < scores.size(); ++i) {
      const bool same = std::isnan(expected[i])
                            ? std::isnan(scores[i])
                            : scores[i] == expected[i] || std::abs(scores[i] - expected[i]) < kScoreError;
      ASSERT_TRUE(same) << "element " << i << ": " << scores[i] << " instead of " << expected[i];
    }
    const Buffer chosen = judged(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
    EXPECT_TRUE(run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices").same_bits(chosen));
    layer.tensors["block_scores"] = scores;
    EXPECT_TRUE(run_on_device(layer, OPENMSA_OP_TOPK).at("topk_indices").same_bits(chosen)) << "over stored scores";
  }
}

TEST_P(SelectionRules, NanAndInfInQueriesSelectOnlyBlocksThatExist) {
  for (const double value : {kNan, kInf, -kInf}) {
    for (const char* name : {"index_q", "index_k"}) {
      Layer layer = make_layer(
          {.dtype = OPENMSA_BFLOAT16, .block_size = GetParam(), .topk = 3, .seqlens_q = {300}, .seqlens_k = {300}});
      fill_rows(layer.tensors.at(name), 10, 150, value);
      const Buffer indices = run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
      for (std::int64_t row = 0; row < 300; ++row) {
        const auto chosen = selection_row(indices, 1, row);
        const std::int64_t visible = layer.visible_blocks(row), count = std::min<std::int64_t>(3, visible);
        EXPECT_EQ(chosen[static_cast<std::size_t>(count - 1)], visible - 1);
        EXPECT_TRUE(std::is_sorted(chosen.begin(), chosen.begin() + count));
        EXPECT_GE(chosen[0], 0);
      }
    }
  }
}

TEST_P(SelectionRules, HugeScoresAreLegal) {
  Layer layer = make_layer({.dtype = OPENMSA_BFLOAT16,
                            .block_size = GetParam(),
                            .topk = 2,
                            .seqlens_q = {1},
                            .seqlens_k = {6 * GetParam() + 1}});
  layer.tensors.at("index_q").fill(1e15);
  layer.tensors.at("index_k").fill(1e6);
  fill_rows(layer.tensors.at("index_k"), 4 * GetParam() + 1, 4 * GetParam() + 2, 2e6);
  const Buffer chosen = run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  EXPECT_EQ(selection_row(chosen, 0, 0), (std::vector<std::int64_t>{4, 6}));
}

TEST_P(SelectionRules, GarbageBehindARowOfScoresIsNotRead) {
  Layer layer = make_layer({.dtype = OPENMSA_BFLOAT16,
                            .block_size = GetParam(),
                            .topk = 4,
                            .seqlens_q = {200, 3},
                            .seqlens_k = {200, 10 * GetParam()}});
  const Buffer clean = judged(layer, OPENMSA_OP_BLOCK_SCORES, OPENMSA_BACKEND_CPU).at("block_scores");
  layer.tensors["block_scores"] = clean;
  const TensorMap expected = judged(layer, OPENMSA_OP_TOPK);
  for (const double poison : {kNan, 1e30, kInf}) {
    Buffer& scores = layer.tensors["block_scores"];
    for (std::int64_t r = 0; r < 2; ++r) {
      for (std::int64_t row = 0; row < layer.total_q(); ++row) {
        for (std::int64_t b = layer.visible_blocks(row); b < scores.shape()[2]; ++b) scores.set({r, row, b}, poison);
      }
    }
    expect_same_bits(run_on_device(layer, OPENMSA_OP_TOPK), expected);
  }
}

TEST_P(SelectionRules, LocalBlockIsThatOfEachQuery) {
  const std::int64_t block = GetParam();
  const Layer layer = make_layer({.dtype = OPENMSA_BFLOAT16,
                                  .block_size = GetParam(),
                                  .topk = 1,
                                  .seqlens_q = {300, 170, 5},
                                  .seqlens_k = {300, 400, 2 * block + 2}});
  const Buffer indices = run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  for (std::int64_t r = 0; r < 2; ++r) {
    for (std::int64_t row = 0; row < layer.total_q(); ++row) {
      ASSERT_EQ(selection_row(indices, r, row)[0], layer.position(row) / block) << r << ", " << row;
    }
  }
}

TEST_P(SelectionRules, EachGroupSelectsForItself) {
  Layer layer = make_layer(
      {.dtype = OPENMSA_FLOAT16, .block_size = GetParam(), .topk = 2, .seqlens_q = {1}, .seqlens_k = {3 * GetParam()}});
  fill_rows(layer.tensors.at("index_k"), 0, GetParam(), 1);
  fill_rows(layer.tensors.at("index_k"), GetParam(), 2 * GetParam(), -1);
  for (std::int64_t c = 0; c < 64; ++c) {
    layer.tensors.at("index_q").set({0, 0, c}, 1);
    layer.tensors.at("index_q").set({0, 1, c}, -1);
  }
  const Buffer indices = run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  EXPECT_EQ(selection_row(indices, 0, 0), (std::vector<std::int64_t>{0, 2}));
  EXPECT_EQ(selection_row(indices, 1, 0), (std::vector<std::int64_t>{1, 2}));
}

}  // namespace
}  // namespace openmsa::test
