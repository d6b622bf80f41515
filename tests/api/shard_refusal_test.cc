// Calls about shards that contradict themselves or ask for what shards do not serve; outputs stay as they were.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "judge/shards.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();

/// Two sequences of 40 and 200 keys with 40 and 2 queries, kv_blocks of 32, topk 4, pages of 16: rank 1 of 2, with what
/// every operation on shards reads.
Layer shard_layer() {
  Layer whole = make_layer({.page_size = 16, .seqlens_q = {40, 2}, .seqlens_k = {40, 200}});
  whole.add(run(whole, OPENMSA_OP_SELECT_BLOCKS));
  std::vector<Buffer> candidates, o, lse;
  for (std::int32_t rank = 0; rank < 2; ++rank) {
    const Layer shard = shard_of(whole, 2, rank);
    candidates.push_back(run(shard, OPENMSA_OP_SELECT_CANDIDATES).at("candidates"));
    const TensorMap part = run(shard, OPENMSA_OP_SPARSE_ATTENTION);
    o.push_back(part.at("o"));
    lse.push_back(part.at("lse"));
  }
  Layer layer = shard_of(whole, 2, 1);
  return layer.add({{"all_candidates", stacked(candidates)}, {"partial_o", stacked(o)}, {"partial_lse", stacked(lse)}});
}

void expect_refused(const Layer& layer, openmsa_op op, openmsa_status status, const std::string& message,
                    const std::function<void(Tensors&)>& spoil = {}) {
  const Plan plan(layer.config);
  const TensorMap outputs = poisoned_outputs(layer, op), before = outputs;
  Tensors tensors = gather(layer, op, outputs);
  if (spoil) spoil(tensors);
  Workspace workspace;
  EXPECT_EQ(openmsa_run(plan.get(), op, &tensors, workspace.reserve(plan.workspace_bytes(op))), status);
  EXPECT_THAT(openmsa_last_error(), testing::HasSubstr(message));
  expect_same_bits(outputs, before);
}

TEST(ShardRefusal, OperationsOnWholeSequences) {
  const Layer layer = shard_layer();
  for (int number = 0; number < OPENMSA_OP_COUNT; ++number) {
    const auto op = static_cast<openmsa_op>(number);
    const Plan plan(layer.config);
    const TensorMap outputs = poisoned_outputs(layer, op);
    const Tensors tensors = gather(layer, op, outputs);
    const openmsa_status status = openmsa_check(plan.get(), op, &tensors);
    switch (op) {
      case OPENMSA_OP_SPARSE_ATTENTION:
      case OPENMSA_OP_SELECT_CANDIDATES:
      case OPENMSA_OP_MERGE_CANDIDATES:
      case OPENMSA_OP_MERGE_PARTIALS:
        EXPECT_EQ(status, OPENMSA_SUCCESS) << name_of(op) << ": " << openmsa_last_error();
        break;
      case OPENMSA_OP_APPEND_KV:  // the layer's k and v are of all tokens
        EXPECT_THAT(openmsa_last_error(), testing::Not(testing::HasSubstr("shard_count")));
        break;
      default:
        EXPECT_EQ(status, OPENMSA_UNSUPPORTED) << name_of(op);
        EXPECT_EQ(openmsa_last_error(), "shard_count: openmsa_" + std::string(name_of(op)) +
                                            " works on whole sequences, got one of 2 shards");
    }
  }
}

TEST(ShardRefusal, ContiguousKeys) {
  Layer layer = make_layer({});
  layer.add(run(layer, OPENMSA_OP_SELECT_BLOCKS));
  layer.config.shard_count = 2;
  for (const openmsa_op op : {OPENMSA_OP_SELECT_CANDIDATES, OPENMSA_OP_SPARSE_ATTENTION}) {
    expect_refused(layer, op, OPENMSA_UNSUPPORTED,
                   "page_size: openmsa_" + std::string(name_of(op)) + " works on pages where there are shards, got");
  }
}

TEST(ShardRefusal, SlicesOfAnotherNumberOfShards) {
  Layer layer = shard_layer();
  layer.config.shard_count = 3;
  expect_refused(layer, OPENMSA_OP_MERGE_CANDIDATES, OPENMSA_INVALID_ARGUMENT,
                 "all_candidates: expected shape[0] = shard_count = 3, got 2");
  expect_refused(layer, OPENMSA_OP_MERGE_PARTIALS, OPENMSA_INVALID_ARGUMENT,
                 "partial_o: expected shape[0] = shard_count = 3, got 2");
}

TEST(ShardRefusal, CandidatesOfAnotherDtype) {
  expect_refused(shard_layer(), OPENMSA_OP_MERGE_CANDIDATES, OPENMSA_INVALID_ARGUMENT,
                 "all_candidates: expected dtype int64, got int32",
                 [](Tensors& tensors) { tensors.all_candidates.dtype = OPENMSA_INT32; });
}

/// The shard has the kv_blocks 1, 3 and 5 of 7: six pages.
TEST(ShardRefusal, ATableWithoutThePagesOfTheShard) {
  expect_refused(shard_layer(), OPENMSA_OP_SELECT_CANDIDATES, OPENMSA_INVALID_ARGUMENT,
                 "block_table: expected at least 6 pages for seqlens_k[1] = 200, got 5",
                 [](Tensors& tensors) { tensors.block_table.shape[1] = 5; });
  Layer layer = shard_layer();
  layer.tensors.at("block_table").set({1, 4}, 99);
  expect_refused(layer, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_INVALID_ARGUMENT, "got 99 at [1, 4]");
}

struct Spoilt {
  std::string name;
  std::vector<std::int64_t> row;  // of shard 1, head 0, query 41, which stands at position 199: 0 to 5 compete
  std::string message;
};

/// score * 2^32 + (2^32 - 1 - block)
constexpr std::int64_t number(std::int64_t score, std::int64_t block) {
  return score * (std::int64_t{1} << 32) + 0xffffffff - block;
}

class CandidateRefusal : public testing::TestWithParam<Spoilt> {};
INSTANTIATE_TEST_SUITE_P(
    Rows, CandidateRefusal,
    testing::Values(
        Spoilt{
            "of_another_shard", {number(1, 2), kNone, kNone, kNone}, "expected kv_blocks of shard 1, got kv_block 2"},
        Spoilt{"forced", {number(1, 6), kNone, kNone, kNone}, "expected kv_blocks from 0 to 5, got kv_block 6"},
        Spoilt{"past_the_sequence", {number(1, 701), kNone, kNone, kNone}, "expected kv_blocks from 0 to 5, got"},
        Spoilt{"no_block", {0x7f7f7f7f7f7f7f7f, kNone, kNone, kNone}, "expected kv_blocks from 0 to 5, got"},
        Spoilt{"twice", {number(2, 3), number(1, 3), kNone, kNone}, "expected different kv_blocks in a row, got"},
        Spoilt{"ascending", {number(1, 3), number(2, 1), kNone, kNone}, "expected descending rows, got a greater one"},
        Spoilt{"equal", {number(1, 3), number(1, 3), kNone, kNone}, "expected descending rows, got"},
        Spoilt{"after_none", {kNone, number(1, 3), kNone, kNone}, "expected descending rows, got"}),
    [](const auto& info) { return info.param.name; });

TEST_P(CandidateRefusal, NamesThePlace) {
  Layer layer = shard_layer();
  Buffer& all = layer.tensors.at("all_candidates");  // [2, 2, 42, 4]
  std::vector<std::byte> bytes = all.bytes();
  std::memcpy(bytes.data() + ((2 * 42) + 41) * 4 * 8, GetParam().row.data(), 32);
  all.assign_bytes(bytes);
  expect_refused(layer, OPENMSA_OP_MERGE_CANDIDATES, OPENMSA_INVALID_ARGUMENT, "all_candidates: " + GetParam().message);
  EXPECT_THAT(openmsa_last_error(), testing::HasSubstr(" at [1, 0, 41, "));
}

TEST(ShardRefusal, WhatIsAppendedComesWithItsCache) {
  const Layer layer = with_new_keys(make_layer({.page_size = 16, .seqlens_q = {5}, .seqlens_k = {50}}), 1);
  const auto refuse = [&](const std::string& message, const std::function<void(Tensors&)>& spoil) {
    expect_refused(layer, OPENMSA_OP_APPEND_KV, OPENMSA_INVALID_ARGUMENT, message, spoil);
  };
  refuse("v: required by openmsa_append_kv with any of k, v and their caches, got none",
         [](Tensors& tensors) { tensors.v = {}; });
  refuse("k_cache: required by openmsa_append_kv with any of k, v and their caches, got none",
         [](Tensors& tensors) { tensors.k_cache = {}; });
  refuse("k: required by openmsa_append_kv, got none", [](Tensors& tensors) {
    tensors.k = tensors.v = tensors.index_k = tensors.k_cache = tensors.v_cache = tensors.index_k_cache = {};
  });
}

}  // namespace
}  // namespace openmsa::test
