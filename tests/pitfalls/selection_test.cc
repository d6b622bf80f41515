// Which kv_blocks are chosen, and which tokens a query sees.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pitfalls/fixture.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

using testing::ElementsAre;

class SelectionPitfalls : public OnBackend {
 protected:
  static Buffer selected(const Layer& layer) { return run(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"); }
};
INSTANTIATE_TEST_SUITE_P(Backends, SelectionPitfalls, testing::ValuesIn(backends()), backend_test_name);

/// Pitfall 1: the local block of the last query taken for that of all.
TEST_P(SelectionPitfalls, LocalBlockIsThatOfEachQuery) {
  // topk = 1 leaves nothing but the local block: inside a prompt, in a chunk behind a prefix, in speculation.
  const Layer chunks = layer({.topk = 1, .seqlens_q = {300, 170, 5}, .seqlens_k = {300, 400, 2 * block() + 2}});
  const Buffer indices = selected(chunks);
  for (std::int64_t r = 0; r < 2; ++r) {
    for (std::int64_t row = 0; row < chunks.total_q(); ++row) {
      ASSERT_EQ(indices.at({r, row, 0}), static_cast<double>(chunks.position(row) / block())) << r << ", " << row;
    }
  }
}

/// Pitfall 2: causality by kv_block instead of by token.
TEST_P(SelectionPitfalls, NoQuerySeesALaterToken) {
  // Everything after position `last` changes, inside its kv_block and after it.
  const std::int64_t length = 3 * block() - 6, last = block() + 9;
  Layer whole = layer({.seqlens_q = {length}, .seqlens_k = {length}});
  const TensorMap before = run(whole, OPENMSA_OP_MSA_ATTENTION);
  for (const char* name : {"k", "v", "index_k"}) fill_rows(whole.tensors.at(name), last + 1, length, 1e4);
  const TensorMap after = run(whole, OPENMSA_OP_MSA_ATTENTION);
  for (const char* name : {"o", "lse"}) {
    EXPECT_TRUE(rows(before.at(name), 0, last + 1).same_bits(rows(after.at(name), 0, last + 1))) << name;
  }
  EXPECT_FALSE(rows(before.at("o"), last + 1, 1).same_bits(rows(after.at("o"), last + 1, 1)));
}

/// Pitfall 1, speculation: drafts that see one another, in the kv_block that all of them share and in the next one.
TEST_P(SelectionPitfalls, ADraftTokenDoesNotSeeTheDraftsAfterIt) {
  constexpr std::int64_t kDrafts = 16;
  const std::int64_t length = 5 * block() + 3;
  const Layer drafts = layer({.topk = 3, .seqlens_q = {kDrafts}, .seqlens_k = {length}});
  const TensorMap before = run(drafts, OPENMSA_OP_MSA_ATTENTION);
  for (const std::int64_t last : {std::int64_t{3}, kDrafts - 4}) {  // the last query that must not notice
    Layer odd = drafts;
    for (const char* name : {"k", "v", "index_k"}) {
      fill_rows(odd.tensors.at(name), length - kDrafts + last + 1, length, kNan);
    }
    const TensorMap after = run(odd, OPENMSA_OP_MSA_ATTENTION);
    for (const char* name : {"o", "lse"}) {
      EXPECT_TRUE(rows(before.at(name), 0, last + 1).same_bits(rows(after.at(name), 0, last + 1))) << name << last;
    }
    EXPECT_FALSE(is_finite(after.at("o")));
  }
}

/// Pitfall 3: a kv_block that is forced and chosen, or forced twice.
TEST_P(SelectionPitfalls, ForcedBlocksAreNeverTakenTwice) {
  const LayerShape prompt{.seqlens_q = {20, block() + 5}, .seqlens_k = {9 * block() + 3, block() + 5}};
  const LayerShape decode{.seqlens_q = {16, 1, 2, 1}, .seqlens_k = {9 * block() + 4, 20 * block() + 20, block(), 3}};
  for (const LayerShape& shape : {prompt, decode}) {
    Layer forced = layer(shape);
    for (const std::int32_t num_local_blocks : {0, 1, 2, 3, 5}) {
      for (const std::int32_t num_init_blocks : {0, 1, 2, 3, 5}) {
        for (const std::int32_t topk : {1, 3, 8, 20}) {
          SCOPED_TRACE(testing::Message() << num_local_blocks << " local, " << num_init_blocks << " init, " << topk);
          forced.config.num_local_blocks = num_local_blocks;
          forced.config.num_init_blocks = num_init_blocks;
          forced.shape.topk = forced.config.topk = topk;
          expect_selection(forced, selected(forced), quick_judge(forced));
          if (HasFailure()) return;
        }
      }
    }
  }
}

/// Pitfall 4: attention that counts on ascending indices or on the local block as the last one.
TEST_P(SelectionPitfalls, PrefixesMayBeUnorderedAndNeedNoLocalBlock) {
  Layer shuffled = layer({.topk = 4, .page_size = 16, .seqlens_q = {1}, .seqlens_k = {4 * block() + 22}});
  shuffled.add({{"topk_indices", int_buffer({0, 1, 3, -1, 2, 4, -1, -1}, {2, 1, 4})}});
  const TensorMap ascending = run(shuffled, OPENMSA_OP_SPARSE_ATTENTION);
  shuffled.add({{"topk_indices", int_buffer({3, 0, 1, -1, 4, 2, -1, -1}, {2, 1, 4})}});
  expect_close(shuffled, run(shuffled, OPENMSA_OP_SPARSE_ATTENTION), ascending);
}

/// Pitfall 4: block_table[-1] looked up for an unused slot. Before the second row of the table stands a page of NaN.
TEST_P(SelectionPitfalls, UnusedSlotsLookUpNoPage) {
  Layer unused = layer({.page_size = block(), .seqlens_q = {1, 1}, .seqlens_k = {4 * block(), 4 * block()}});
  unused.add({{"topk_indices", int_buffer({0, -1, -1, -1, 1, -1, -1, -1, 2, 0, -1, -1, -1, -1, -1, -1}, {2, 2, 4})}});
  const TensorMap expected = run(unused, OPENMSA_OP_SPARSE_ATTENTION);
  const auto last_page = static_cast<std::int64_t>(unused.tensors.at("block_table").at({0, 3}));
  for (const char* name : kCaches) fill_rows(unused.tensors.at(name), last_page, last_page + 1, kNan);
  expect_same_bits(run(unused, OPENMSA_OP_SPARSE_ATTENTION), expected);
}

/// Pitfall 5: ties.
TEST_P(SelectionPitfalls, TiesPickTheLowestIndicesAndTheLocalBlock) {
  for (const std::int64_t seqlen_q : {1, 100}) {
    for (const char* zero : {"index_q", "index_k"}) {
      Layer ties = layer({.topk = 3, .seqlens_q = {seqlen_q}, .seqlens_k = {20 * block()}});
      ties.tensors.at(zero).fill(0);
      EXPECT_THAT(selection_row(selected(ties), 0, seqlen_q - 1), ElementsAre(0, 1, 19)) << zero;
    }
  }
}

/// Pitfall 5: scores above what an initial maximum such as -1e20 allows for.
TEST_P(SelectionPitfalls, HugeScoresAreLegal) {
  // index_q = 1e15 and index_k near 1e6: scores of 1e21 and more. Few kv_blocks, and enough for every SM.
  for (const std::int64_t last : {6, 140}) {
    Layer huge = layer({.topk = 2, .seqlens_q = {1}, .seqlens_k = {last * block() + 1}});
    huge.tensors.at("index_q").fill(1e15);
    huge.tensors.at("index_k").fill(-1e6);
    EXPECT_THAT(selection_row(selected(huge), 0, 0), ElementsAre(0, last));
    huge.tensors.at("index_k").fill(1e6);
    fill_rows(huge.tensors.at("index_k"), 4 * block() + 1, 4 * block() + 2, 2e6);
    EXPECT_THAT(selection_row(selected(huge), 0, 0), ElementsAre(4, last));
  }
}

/// Pitfall 5: NaN and Inf.
TEST_P(SelectionPitfalls, NanAndInfInScoresSelectOnlyBlocksThatExist) {
  for (const double value : {kNan, kInf, -kInf}) {
    for (const char* name : {"index_q", "index_k"}) {
      Layer broken = layer({.topk = 3, .seqlens_q = {300}, .seqlens_k = {300}});
      fill_rows(broken.tensors.at(name), 10, 150, value);
      const Buffer indices = selected(broken);
      for (std::int64_t row = 0; row < 300; ++row) {
        const auto chosen = selection_row(indices, 1, row);
        const std::int64_t visible = broken.visible_blocks(row), count = std::min<std::int64_t>(3, visible);
        EXPECT_EQ(chosen[static_cast<std::size_t>(count - 1)], visible - 1);  // the local block, last of those chosen
        EXPECT_TRUE(std::is_sorted(chosen.begin(), chosen.begin() + count));
        EXPECT_GE(chosen[0], 0);
      }
    }
  }
}

/// Pitfall 6: a score buffer is garbage past the end of a row.
TEST_P(SelectionPitfalls, GarbageBehindARowOfScoresIsNotRead) {
  Layer garbage = layer({.topk = 4, .seqlens_q = {200, 3}, .seqlens_k = {200, 10 * block()}});
  garbage.add(run(garbage, OPENMSA_OP_BLOCK_SCORES));
  const TensorMap expected = run(garbage, OPENMSA_OP_TOPK);
  for (const double poison : {kNan, 1e30, kInf}) {
    Buffer& scores = garbage.tensors.at("block_scores");
    for (std::int64_t r = 0; r < 2; ++r) {
      for (std::int64_t row = 0; row < garbage.total_q(); ++row) {
        for (std::int64_t b = garbage.visible_blocks(row); b < scores.shape()[2]; ++b) scores.set({r, row, b}, poison);
      }
    }
    expect_same_bits(run(garbage, OPENMSA_OP_TOPK), expected);
  }
}

/// Pitfall 7: a maximum over index heads.
TEST_P(SelectionPitfalls, EachGroupSelectsForItself) {
  // The groups look in opposite directions: one finds block 0 best, the other block 1.
  Layer groups = layer({.topk = 2, .seqlens_q = {1}, .seqlens_k = {3 * block()}});
  fill_rows(groups.tensors.at("index_k"), 0, block(), 1);
  fill_rows(groups.tensors.at("index_k"), block(), 2 * block(), -1);
  for (std::int64_t c = 0; c < 64; ++c) {
    groups.tensors.at("index_q").set({0, 0, c}, 1);
    groups.tensors.at("index_q").set({0, 1, c}, -1);
  }
  const Buffer indices = selected(groups);
  EXPECT_THAT(selection_row(indices, 0, 0), ElementsAre(0, 2));
  EXPECT_THAT(selection_row(indices, 1, 0), ElementsAre(1, 2));
}

}  // namespace
}  // namespace openmsa::test
