// Which kv_blocks are chosen, and which tokens a query sees.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pitfalls/fixture.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

using testing::ElementsAre;

class SelectionPitfalls : public Pitfalls {};
INSTANTIATE_TEST_SUITE_P(Backends, SelectionPitfalls, testing::Values(OPENMSA_BACKEND_REFERENCE, OPENMSA_BACKEND_CPU),
                         backend_name);

/// Pitfall 1: the local block of the last query taken for that of all.
TEST_P(SelectionPitfalls, LocalBlockIsThatOfEachQuery) {
  // topk = 1 leaves nothing but the local block: inside a prompt, in a chunk behind a prefix, in speculation.
  const Layer chunks = layer({.topk = 1, .seqlens_q = {100, 70, 5}, .seqlens_k = {100, 170, 66}});
  const Buffer indices = run(chunks, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  for (std::int64_t r = 0; r < 2; ++r) {
    for (std::int64_t row = 0; row < chunks.total_q(); ++row) {
      EXPECT_EQ(indices.at({r, row, 0}), static_cast<double>(chunks.position(row) / 32)) << r << ", " << row;
    }
  }
}

/// Pitfall 2: causality by kv_block instead of by token.
TEST_P(SelectionPitfalls, NoQuerySeesALaterToken) {
  // Everything after position 41 changes, inside its kv_block (32 to 63) and behind it.
  Layer whole = layer({.seqlens_q = {90}, .seqlens_k = {90}});
  const TensorMap before = run(whole, OPENMSA_OP_MSA_ATTENTION);
  for (const char* name : {"k", "v", "index_k"}) fill_rows(whole.tensors.at(name), 42, 90, 1e4);
  const TensorMap after = run(whole, OPENMSA_OP_MSA_ATTENTION);
  EXPECT_TRUE(rows(before.at("o"), 0, 42).same_bits(rows(after.at("o"), 0, 42)));
  EXPECT_TRUE(rows(before.at("lse"), 0, 42).same_bits(rows(after.at("lse"), 0, 42)));
  EXPECT_FALSE(rows(before.at("o"), 42, 1).same_bits(rows(after.at("o"), 42, 1)));
}

/// Pitfall 1, speculation: drafts that see one another.
TEST_P(SelectionPitfalls, ADraftTokenDoesNotSeeTheDraftsAfterIt) {
  Layer drafts = layer({.seqlens_q = {4}, .seqlens_k = {131}});
  const TensorMap before = run(drafts, OPENMSA_OP_MSA_ATTENTION);
  for (const char* name : {"k", "v", "index_k"}) fill_rows(drafts.tensors.at(name), 129, 131, kNan);
  const TensorMap after = run(drafts, OPENMSA_OP_MSA_ATTENTION);
  EXPECT_TRUE(rows(before.at("o"), 0, 2).same_bits(rows(after.at("o"), 0, 2)));
}

/// Pitfall 3: a kv_block that is forced and chosen, or forced twice.
TEST_P(SelectionPitfalls, ForcedBlocksAreNeverTakenTwice) {
  for (const std::int32_t num_local_blocks : {0, 1, 2, 5}) {
    for (const std::int32_t num_init_blocks : {0, 1, 3, 5}) {
      for (const std::int32_t topk : {1, 3, 8}) {
        SCOPED_TRACE(testing::Message() << num_local_blocks << " local, " << num_init_blocks << " init, " << topk);
        const Layer forced = layer({.head_dim = 8,
                                    .index_dim = 8,
                                    .block_size = 8,
                                    .topk = topk,
                                    .num_init_blocks = num_init_blocks,
                                    .num_local_blocks = num_local_blocks,
                                    .seqlens_q = {70},
                                    .seqlens_k = {70}});
        const Buffer indices = run(forced, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
        const Layer judge = forced.on(OPENMSA_BACKEND_REFERENCE);
        expect_same_selection(forced, indices, run(judge, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"),
                              run(judge, OPENMSA_OP_BLOCK_SCORES).at("block_scores"));
      }
    }
  }
}

/// Pitfall 4: attention that counts on ascending indices or on the local block as the last one.
TEST_P(SelectionPitfalls, PrefixesMayBeUnorderedAndNeedNoLocalBlock) {
  Layer shuffled = layer({.topk = 4, .page_size = 16, .seqlens_q = {1}, .seqlens_k = {150}});
  shuffled.add({{"topk_indices", int_buffer({0, 1, 3, -1, 2, 4, -1, -1}, {2, 1, 4})}});
  const TensorMap ascending = run(shuffled, OPENMSA_OP_SPARSE_ATTENTION);
  shuffled.add({{"topk_indices", int_buffer({3, 0, 1, -1, 4, 2, -1, -1}, {2, 1, 4})}});
  const TensorMap unordered = run(shuffled, OPENMSA_OP_SPARSE_ATTENTION);
  EXPECT_LT(relative_error(unordered.at("o"), ascending.at("o")), 1e-6);
  EXPECT_LT(absolute_error(unordered.at("lse"), ascending.at("lse")), 1e-6);
}

/// Pitfall 4: block_table[-1] looked up for an unused slot. In front of the second row of the table stands a page of
/// NaN.
TEST_P(SelectionPitfalls, UnusedSlotsLookUpNoPage) {
  Layer unused = layer({.page_size = 32, .seqlens_q = {1, 1}, .seqlens_k = {128, 128}});
  unused.add({{"topk_indices", int_buffer({0, -1, -1, -1, 1, -1, -1, -1, 2, 0, -1, -1, -1, -1, -1, -1}, {2, 2, 4})}});
  const TensorMap expected = run(unused, OPENMSA_OP_SPARSE_ATTENTION);
  const auto last_page = static_cast<std::int64_t>(unused.tensors.at("block_table").at({0, 3}));
  for (const char* name : kCaches) fill_rows(unused.tensors.at(name), last_page, last_page + 1, kNan);
  expect_same_bits(run(unused, OPENMSA_OP_SPARSE_ATTENTION), expected);
}

/// Pitfall 5: ties.
TEST_P(SelectionPitfalls, TiesPickTheLowestIndicesAndTheLocalBlock) {
  for (const char* zero : {"index_q", "index_k"}) {
    Layer ties = layer({.topk = 3, .seqlens_q = {1}, .seqlens_k = {190}});
    ties.tensors.at(zero).fill(0);
    EXPECT_THAT(selection_row(run(ties, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"), 0, 0), ElementsAre(0, 1, 5));
  }
}

/// Pitfall 5: scores above what an initial maximum such as -1e20 allows for.
TEST_P(SelectionPitfalls, HugeScoresAreLegal) {
  // index_q = 1e15 and index_k near 1e6: scores of 1e21 and more.
  Layer huge = layer({.topk = 2, .seqlens_q = {1}, .seqlens_k = {100}});
  huge.tensors.at("index_q").fill(1e15);
  huge.tensors.at("index_k").fill(1e6);
  fill_rows(huge.tensors.at("index_k"), 33, 34, 2e6);
  EXPECT_THAT(selection_row(run(huge, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"), 0, 0), ElementsAre(1, 3));
}

/// Pitfall 5: NaN and Inf.
TEST_P(SelectionPitfalls, NanAndInfInScoresSelectOnlyBlocksThatExist) {
  for (const double value : {kNan, kInf, -kInf}) {
    for (const char* name : {"index_q", "index_k"}) {
      Layer broken = layer({.topk = 3, .seqlens_q = {100}, .seqlens_k = {100}});
      fill_rows(broken.tensors.at(name), 10, 50, value);
      const Buffer indices = run(broken, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
      for (std::int64_t row = 0; row < 100; ++row) {
        const auto chosen = selection_row(indices, 0, row);
        const std::int64_t count = std::min<std::int64_t>(3, row / 32 + 1);
        EXPECT_EQ(chosen[static_cast<std::size_t>(count - 1)], row / 32);  // the local block, last of those chosen
        EXPECT_TRUE(std::is_sorted(chosen.begin(), chosen.begin() + count));
        EXPECT_GE(chosen[0], 0);
      }
    }
  }
}

/// Pitfall 6: a score buffer is garbage past the end of a row.
TEST_P(SelectionPitfalls, GarbageBehindARowOfScoresIsNotRead) {
  Layer garbage = layer({.topk = 4, .seqlens_q = {100, 3}, .seqlens_k = {100, 260}});
  const TensorMap clean = run(garbage, OPENMSA_OP_BLOCK_SCORES);
  for (const double poison : {kNan, 1e30, kInf}) {
    Buffer scores = clean.at("block_scores");
    for (std::int64_t r = 0; r < 2; ++r) {
      for (std::int64_t row = 0; row < garbage.total_q(); ++row) {
        for (std::int64_t b = garbage.visible_blocks(row); b < scores.shape()[2]; ++b) scores.set({r, row, b}, poison);
      }
    }
    Layer poisoned = garbage;
    garbage.add(clean);
    poisoned.add({{"block_scores", scores}});
    expect_same_bits(run(poisoned, OPENMSA_OP_TOPK), run(garbage, OPENMSA_OP_TOPK));
  }
}

/// Pitfall 7: a maximum over index heads.
TEST_P(SelectionPitfalls, EachGroupSelectsForItself) {
  // The groups look in opposite directions: one finds block 0 best, the other block 1.
  Layer groups = layer({.topk = 2, .seqlens_q = {1}, .seqlens_k = {96}});
  fill_rows(groups.tensors.at("index_k"), 0, 32, 1);
  fill_rows(groups.tensors.at("index_k"), 32, 64, -1);
  for (std::int64_t c = 0; c < 64; ++c) {
    groups.tensors.at("index_q").set({0, 0, c}, 1);
    groups.tensors.at("index_q").set({0, 1, c}, -1);
  }
  const Buffer indices = run(groups, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  EXPECT_THAT(selection_row(indices, 0, 0), ElementsAre(0, 2));
  EXPECT_THAT(selection_row(indices, 1, 0), ElementsAre(1, 2));
}

}  // namespace
}  // namespace openmsa::test
