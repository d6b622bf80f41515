// kv_blocks in shards, one rank after the other in this process, on every backend that serves them: the selection is that
// of whole sequences, bit by bit; attention is, but for rounding.
#include "support/shards.h"

#include <gtest/gtest.h>

#include <cmath>
#include <utility>

#include "pitfalls/fixture.h"
#include "support/append_kv.h"
#include "support/compare.h"
#include "support/selections.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

constexpr std::int32_t kCounts[] = {1, 2, 3, 4, 8};

/// What select_blocks gives; on the reference, whose scores are finer than those of candidates, topk of scores in fp32.
Buffer selection_of_sequences(const Layer& layer) {
  if (layer.config.backend != OPENMSA_BACKEND_REFERENCE) return run(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  Layer scored = layer;
  scored.tensors["block_scores"] = run(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores").as(OPENMSA_FLOAT32);
  return run(scored, OPENMSA_OP_TOPK).at("topk_indices");
}

void expect_selection_of_sequences(const Layer& layer) {
  const Buffer expected = selection_of_sequences(layer);
  for (const std::int32_t count : kCounts) {
    EXPECT_TRUE(selection_of_shards(layer, count).same_bits(expected)) << count << " shards";
  }
}

void expect_attention_of_sequences(const Layer& layer) {
  const TensorMap expected = judged(layer, OPENMSA_OP_SPARSE_ATTENTION);
  for (const std::int32_t count : kCounts) {
    SCOPED_TRACE(testing::Message() << count << " shards");
    expect_close(layer, run(with_parts(layer, count), OPENMSA_OP_MERGE_PARTIALS), expected);
  }
}

// ------------------------------------------------------------------------------ every shape of the CPU backend

/// Those with pages, and those without in pages of a half kv_block.
std::vector<BackendShape> sharded_shapes() {
  std::vector<BackendShape> shapes = attention_shapes();
  for (BackendShape& shape : shapes) {
    if (shape.named.shape.page_size == 0) shape.named.shape.page_size = shape.named.shape.block_size / 2;
  }
  return shapes;
}

using ShardShapes = OnBackendShape;
INSTANTIATE_TEST_SUITE_P(Shapes, ShardShapes, testing::ValuesIn(sharded_shapes()), backend_shape_name);

TEST_P(ShardShapes, SelectionIsThatOfWholeSequences) { expect_selection_of_sequences(layer_); }

/// Also where every kv_block that competes has a place.
TEST_P(ShardShapes, CandidatesHaveTheScoresOfTheReference) {
  for (const std::int32_t rank : {0, 1, 2}) {
    const Layer shard = shard_of(layer_, 3, rank);
    const Buffer got = run(shard, OPENMSA_OP_SELECT_CANDIDATES).at("candidates");
    const Buffer expected = candidate_scores(judged(shard, OPENMSA_OP_SELECT_CANDIDATES).at("candidates"));
    EXPECT_LT(absolute_error(comparable_scores(shard.config.backend, got, expected), expected),
              tolerance(shard.config).score);
  }
}

TEST_P(ShardShapes, AttentionIsThatOfWholeSequences) {
  layer_.add({{"topk_indices", random_selection(layer_, 3)}});
  expect_attention_of_sequences(layer_);
}

/// Every rank stores its tokens and leaves the others' alone.
TEST_P(ShardShapes, AppendedKeysAreThoseOfTheShard) {
  const Layer before = with_new_keys(layer_, 3);
  Layer after = before;
  after.add(appended(before, stored(before)));
  for (const std::int32_t rank : {0, 1, 2}) {
    const Layer shard = shard_of(before, 3, rank);
    expect_same_bits(appended(shard, stored(shard)), stored(shard_of(after, 3, rank)));
  }
}

// ------------------------------------------------------------------------------------------------------- rules

class Shards : public OnBackend {
 protected:
  /// Rows of a batch with a page smaller than a kv_block.
  Layer paged(LayerShape shape, std::uint64_t seed = 1) const {
    shape.page_size = 16;
    return layer(shape, seed);
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, Shards, testing::ValuesIn(backends()), backend_test_name);

/// Around every boundary of a kv_block of 32 keys or of the backend's; fewer kv_blocks than ranks; no keys at all; rows of no sequence.
TEST_P(Shards, SequencesOfAnyLength) {
  LayerShape shape{.topk = 3, .padding_q = 2};
  shape.seqlens_q.clear();
  shape.seqlens_k.clear();
  const std::int64_t b = block();
  for (const std::int64_t length :
       {std::int64_t{0}, std::int64_t{1}, b - 1, b, b + 1, 2 * b - 1, 2 * b, 2 * b + 1, 4 * b + 1, 9 * b + 12}) {
    for (const std::int64_t queries : {1, 40}) {
      shape.seqlens_q.push_back(std::min(length, queries));
      shape.seqlens_k.push_back(length);
    }
  }
  Layer all = paged(shape);
  expect_selection_of_sequences(all);
  all.add({{"topk_indices", selection_of_sequences(all)}});
  expect_attention_of_sequences(all);
}

/// Initial and local kv_blocks, also more of them than topk, and none; decode over many kv_blocks and prompts.
TEST_P(Shards, ForcedBlocksOfEveryKind) {
  for (const std::int32_t num_init : {0, 1, 5}) {
    for (const std::int32_t num_local : {0, 1, 3}) {
      for (const std::int32_t topk : {1, 4, 20}) {
        SCOPED_TRACE(testing::Message() << num_init << " initial, " << num_local << " local, topk " << topk);
        expect_selection_of_sequences(paged({.topk = topk,
                                             .num_init_blocks = num_init,
                                             .num_local_blocks = num_local,
                                             .seqlens_q = {2, 50, 1},
                                             .seqlens_k = {22 * block() - 4, 5 * block() + 10, 2 * block() + 1}}));
      }
    }
  }
}

/// Three levels of score: nearly every place is decided between equal scores of different shards.
TEST_P(Shards, EqualScoresGoToTheLowerBlock) {
  for (const std::int32_t topk : {1, 6, 40}) {
    SCOPED_TRACE(testing::Message() << "topk " << topk);
    Layer equal = paged({.topk = topk, .seqlens_q = {1, 40}, .seqlens_k = {94 * block(), 47 * block() - 4}});
    equal.tensors.at("index_q").fill(1);
    Buffer& index_k = equal.tensors.at("index_k_cache");
    index_k.fill(0);
    std::mt19937_64 random(5);
    for (std::int64_t page = 0; page < index_k.shape()[0]; ++page) {
      index_k.set({page, 0, 0}, static_cast<double>(random() % 3));
    }
    expect_selection_of_sequences(equal);
  }
}

TEST_P(Shards, NanAndInfScores) {
  Layer odd = paged({.topk = 5, .seqlens_q = {3, 60}, .seqlens_k = {28 * block() + 4, 19 * block() - 8}});
  Buffer& index_k = odd.tensors.at("index_k_cache");
  std::mt19937_64 random(7);
  for (std::int64_t page = 0; page < index_k.shape()[0]; ++page) {
    const double values[] = {kNan, kNan, kInf, -kInf, 0};
    const double value = values[random() % 5];
    if (value != 0) fill_rows(index_k, page, page + 1, value);
  }
  expect_selection_of_sequences(odd);
}

TEST_P(Shards, ARankWithNothingOfAQueryGivesZeroAndMinusInf) {
  Layer one = paged({.seqlens_q = {3}, .seqlens_k = {9 * block() + 12}});
  Buffer chosen(OPENMSA_INT32, {2, 3, 4});
  chosen.fill(-1);
  for (std::int64_t r = 0; r < 2; ++r) {
    for (std::int64_t t = 0; t < 3; ++t) {
      chosen.set({r, t, 0}, 6);
      chosen.set({r, t, 1}, 2);
    }
  }
  one.add({{"topk_indices", chosen}});
  for (const std::int32_t rank : {0, 1, 3}) {
    const TensorMap got = part_of_shard(shard_of(one, 4, rank));
    EXPECT_TRUE(is_zero(got.at("o"))) << "rank " << rank;
    for (const double lse : got.at("lse").values()) EXPECT_EQ(lse, -kInf) << "rank " << rank;
  }
  expect_same_bits(part_of_shard(shard_of(one, 4, 2)), part_of_shard(one));  // it has all of it
}

TEST_P(Shards, PartsInThePlansDtypeMergeToo) {
  Layer half = make_layer({.dtype = OPENMSA_BFLOAT16,
                           .block_size = block(),
                           .page_size = 16,
                           .seqlens_q = {40, 1},
                           .seqlens_k = {6 * block() + 8, 10 * block() + 10}})
                   .on(GetParam().id);
  half.add({{"topk_indices", random_selection(half, 3)}});
  Layer merge = with_parts(half, 3);
  const TensorMap in_fp32 = run(merge, OPENMSA_OP_MERGE_PARTIALS);
  merge.tensors["partial_o"] = merge.tensors.at("partial_o").as(OPENMSA_BFLOAT16);
  const TensorMap in_bf16 = run(merge, OPENMSA_OP_MERGE_PARTIALS);
  EXPECT_LT(relative_error(in_bf16.at("o"), in_fp32.at("o")), 2 * tolerance(OPENMSA_BFLOAT16).o);
  EXPECT_TRUE(in_bf16.at("lse").same_bits(in_fp32.at("lse")));
}

TEST_P(Shards, MergedPartsHaveTheRulesOfTheHeader) {
  Layer merge = merging(paged({.seqlens_q = {4}, .seqlens_k = {100}, .padding_q = 2}), 3);
  Buffer o(OPENMSA_FLOAT32, {3, 6, 4, 64}), lse(OPENMSA_FLOAT32, {3, 6, 4});
  o.fill(2);
  lse.fill(-1);
  for (std::int64_t h = 0; h < 4; ++h) {
    lse.set({1, 0, h}, -kInf);  // query 0: a slice of garbage that counts nothing
    for (std::int64_t c = 0; c < 64; ++c) o.set({1, 0, h, c}, kNan);
    for (std::int64_t s = 0; s < 3; ++s) lse.set({s, 1, h}, -kInf);  // query 1: nothing anywhere
    lse.set({2, 2, h}, kNan);
    lse.set({0, 3, h}, kInf);
  }
  merge.tensors["partial_o"] = o;
  merge.tensors["partial_lse"] = lse;
  const TensorMap got = run(merge, OPENMSA_OP_MERGE_PARTIALS);
  for (std::int64_t h = 0; h < 4; ++h) {
    EXPECT_NEAR(got.at("o").at({0, h, 9}), 2, 1e-6);
    EXPECT_NEAR(got.at("lse").at({0, h}), std::log(2) - 1, 1e-6);
    for (const std::int64_t row : {1, 4, 5}) {  // rows 4 and 5 are of no sequence
      EXPECT_EQ(got.at("o").at({row, h, 9}), 0);
      EXPECT_EQ(got.at("lse").at({row, h}), -kInf);
    }
    for (const std::int64_t row : {2, 3}) {
      EXPECT_TRUE(std::isnan(got.at("o").at({row, h, 9}))) << row;
      EXPECT_TRUE(std::isnan(got.at("lse").at({row, h}))) << row;
    }
  }
  EXPECT_TRUE(run(merge, OPENMSA_OP_MERGE_PARTIALS, {"o"}).at("o").same_bits(got.at("o"))) << "lse may be absent";
}

TEST_P(Shards, AnyNumberOfThreadsAndRepeatGiveTheSameBits) {
  Layer layer = paged(
      {.topk = 6, .seqlens_q = {1, 70, 16}, .seqlens_k = {62 * block() + 16, 8 * block() + 14, 28 * block() + 4}});
  layer.add({{"topk_indices", random_selection(layer, 3)}});
  TensorMap expected;
  for (const std::int32_t num_threads : {1, 2, 7, 1}) {
    layer.config.num_threads = num_threads;
    Layer merge = with_parts(layer, 3);
    merge.tensors["all_candidates"] = all_candidates(layer, 3);
    TensorMap got = {{"all_candidates", merge.tensors.at("all_candidates")},
                     {"topk_indices", run(merge, OPENMSA_OP_MERGE_CANDIDATES).at("topk_indices")},
                     {"partial_o", merge.tensors.at("partial_o")},
                     {"partial_lse", merge.tensors.at("partial_lse")},
                     {"o", run(merge, OPENMSA_OP_MERGE_PARTIALS).at("o")}};
    if (expected.empty()) expected = got;
    expect_same_bits(got, expected);
  }
}

/// k and v of one set of heads and index keys lie in different caches where heads are divided among ranks.
TEST_P(Shards, KeysAndIndexKeysAreAppendedApart) {
  const Layer layer = with_new_keys(paged({.seqlens_q = {20, 1}, .seqlens_k = {50, 200}}), 3);
  const TensorMap whole = appended(layer, stored(layer));
  for (const auto& names : {std::vector<const char*>{"index_k"}, std::vector<const char*>{"k", "v"}}) {
    Layer alone = layer;
    for (const char* name : {"k", "v", "index_k"}) alone.tensors.erase(name);
    TensorMap caches, expected;
    for (const std::string name : names) {
      alone.tensors[name] = layer.tensors.at(name);
      caches[name + "_cache"] = layer.tensors.at(name + "_cache");
      expected[name + "_cache"] = whole.at(name + "_cache");
    }
    expect_same_bits(appended(alone, caches), expected);
  }
}

/// Candidates of contiguous keys, and their merge: one shard.
TEST_P(Shards, WithoutShardsKeysMayBeContiguous) {
  Layer whole = layer({.seqlens_q = {40, 3}, .seqlens_k = {140, 270}});
  const Buffer expected = selection_of_sequences(whole);
  whole.tensors["all_candidates"] = stacked({run(whole, OPENMSA_OP_SELECT_CANDIDATES).at("candidates")});
  EXPECT_TRUE(run(whole, OPENMSA_OP_MERGE_CANDIDATES).at("topk_indices").same_bits(expected));
}

}  // namespace
}  // namespace openmsa::test
