// What tests/backends/shards_test.cc leaves to the GPU: fp8 caches, every kernel that a call's shape leads to, graphs.
// The selection of ranks is that of whole sequences bit by bit, whichever kernels make it.
#include "support/shards.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cuda/decode/cases.h"
#include "cuda/support/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "cuda/support/replays.h"
#include "support/compare.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

constexpr std::int32_t kCounts[] = {1, 2, 3, 8};

void expect_selection_of_sequences(const Layer& layer) {
  const Buffer expected = run(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  for (const std::int32_t count : kCounts) {
    EXPECT_TRUE(selection_of_shards(layer, count).same_bits(expected)) << count << " shards";
  }
}

void expect_attention_of_sequences(Layer layer, openmsa_backend judge = OPENMSA_BACKEND_REFERENCE) {
  layer.add({{"topk_indices", random_selection(layer, 3)}});
  const TensorMap expected = run(layer.on(judge), OPENMSA_OP_SPARSE_ATTENTION);
  for (const std::int32_t count : kCounts) {
    SCOPED_TRACE(testing::Message() << count << " shards");
    expect_close(layer, run(with_parts(layer, count), OPENMSA_OP_MERGE_PARTIALS), expected);
  }
}

// ------------------------------------------------------------------------------------------------ fp8 caches

std::vector<NamedShape> fp8_shapes_in_pages() {
  std::vector<NamedShape> shapes = fp8_index_shapes();
  const std::vector<NamedShape> kv = fp8_kv_shapes();
  shapes.insert(shapes.end(), kv.begin(), kv.end());
  for (NamedShape named : fp8_decode_shapes()) {
    named.shape = decode_batch(named.shape);
    shapes.push_back(std::move(named));
  }
  std::erase_if(shapes, [](const NamedShape& named) { return named.shape.page_size == 0; });
  return shapes;
}

class Fp8Shards : public OnHopperWith<NamedShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, Fp8Shards, testing::ValuesIn(fp8_shapes_in_pages()), shape_name);

TEST_P(Fp8Shards, SelectionAndAttentionAreThoseOfWholeSequences) {
  const Layer layer = device_layer(GetParam().shape);
  expect_selection_of_sequences(layer);
  expect_attention_of_sequences(layer);
}

class BlockScaledShards : public OnHopperWith<openmsa_index_q_rounding> {};
INSTANTIATE_TEST_SUITE_P(Roundings, BlockScaledShards,
                         testing::Values(OPENMSA_INDEX_Q_SCALED, OPENMSA_INDEX_Q_CAST, OPENMSA_INDEX_Q_EXACT));

TEST_P(BlockScaledShards, SelectionIsThatOfWholeSequences) {
  for (const auto& [seqlens_q, seqlens_k] :
       {std::pair<std::vector<std::int64_t>, std::vector<std::int64_t>>{{1, 16, 3}, {2000, 900, 700}},
        {{150, 40, 77}, {1500, 1000, 77}}}) {
    Layer layer = device_layer({.dtype = OPENMSA_BFLOAT16,
                                .num_heads_q = 8,
                                .block_size = 64,
                                .topk = 5,
                                .page_size = 32,
                                .seqlens_q = seqlens_q,
                                .seqlens_k = seqlens_k,
                                .index_dtype = OPENMSA_FLOAT8_E4M3,
                                .scales = Scales::kPerBlock,
                                .index_q_rounding = GetParam()});
    expect_selection_of_sequences(layer);
  }
}

// ---------------------------------------------------------------------------------- whoever serves the sequences

using Lengths = std::vector<std::int64_t>;

LayerShape shape_of(Lengths seqlens_q, Lengths seqlens_k) {
  return {.dtype = OPENMSA_BFLOAT16,
          .num_heads_q = 8,
          .num_heads_kv = 2,
          .block_size = 64,
          .topk = 5,
          .page_size = 32,
          .seqlens_q = std::move(seqlens_q),
          .seqlens_k = std::move(seqlens_k)};
}

class CudaShards : public OnHopper {};

/// Decode kernels with 1 and with up to 16 tokens, and prefill, in one call; in and beyond the lanes of a warp.
TEST_F(CudaShards, Mixtures) {
  for (const std::int64_t batch : {7, 40}) {
    Lengths queries, keys;
    constexpr std::int64_t kQueries[] = {200, 1, 16, 1, 0, 5, 17};
    for (std::int64_t b = 0; b < batch; ++b) {
      queries.push_back(kQueries[b % 7]);
      keys.push_back(b % 5 == 4 ? queries.back() / 2 : queries.back() + 131 * b % 1700);
    }
    LayerShape shape = shape_of(queries, keys);
    shape.padding_q = 5;
    const Layer layer = device_layer(shape);
    expect_selection_of_sequences(layer);
    expect_attention_of_sequences(layer, OPENMSA_BACKEND_CPU);
  }
}

/// Beside each other in a query tile of decode: with no local kv_block a query's own competes, as far as it sees it.
TEST_F(CudaShards, QueriesOfADecodeStepSeeTheirOwnBlocks) {
  for (const std::int32_t num_local : {0, 1}) {
    for (std::int64_t keys = 120; keys <= 330; keys += 7) {
      LayerShape shape = shape_of({16, 16, 1}, {keys, keys + 61, keys + 30});
      shape.topk = 2;
      shape.num_local_blocks = num_local;
      expect_selection_of_sequences(device_layer(shape));
      if (HasFailure()) return;
    }
  }
}

/// More sequences than a warp has lanes.
TEST_F(CudaShards, ManySequencesOfDecode) {
  Lengths queries, keys;
  for (std::int64_t b = 0; b < 70; ++b) {
    queries.push_back(1 + b % 2);
    keys.push_back(b % 9 == 0 ? b : 97 * b % 3000);
  }
  const Layer layer = device_layer(shape_of(queries, keys));
  expect_selection_of_sequences(layer);
  expect_attention_of_sequences(layer, OPENMSA_BACKEND_CPU);
}

/// Keys of a prompt's tiles in many parts, in few and in one; short lists and long ones. Decode over every SM.
TEST_F(CudaShards, LongSequences) {
  for (const std::int32_t topk : {5, 40}) {
    for (const std::int64_t queries : {1, 150, 3000}) {
      SCOPED_TRACE(testing::Message() << "topk " << topk << ", " << queries << " queries");
      LayerShape shape = shape_of({queries}, {30011});
      shape.topk = topk;
      const Layer layer = device_layer(shape);
      expect_selection_of_sequences(layer);
      if (topk == 5) expect_attention_of_sequences(layer, OPENMSA_BACKEND_CPU);
    }
  }
}

/// o in fp32 is what the plan's dtype rounds.
TEST_F(CudaShards, PartsInFp32AreTheSameBeforeRounding) {
  for (const Lengths& queries : {Lengths{1, 4, 16}, Lengths{300, 40, 77}}) {
    for (const std::int32_t group_size : {1, 4, 16}) {
      LayerShape shape = shape_of(queries, {1000, 900, 77});
      shape.num_heads_q = 2 * group_size;
      Layer layer = device_layer(shape);
      layer.add({{"topk_indices", random_selection(layer, 3)}});
      const TensorMap rounded = run(layer, OPENMSA_OP_SPARSE_ATTENTION), wide = part_of_shard(layer);
      EXPECT_TRUE(wide.at("o").as(OPENMSA_BFLOAT16).same_bits(rounded.at("o"))) << "group of " << group_size;
      EXPECT_TRUE(wide.at("lse").same_bits(rounded.at("lse")));
    }
  }
}

/// More shards than a lane has candidates of, most of them without any.
TEST_F(CudaShards, FarMoreShardsThanBlocks) {
  Layer layer = device_layer(shape_of({3, 50}, {700, 300}));
  const Buffer expected = run(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices");
  EXPECT_TRUE(selection_of_shards(layer, 70).same_bits(expected));
}

// ------------------------------------------------------------------------------------------------------ graphs

class ShardGraph : public OnHopper {
 protected:
  /// Of every rank, the same tensors in memory for these lengths and no longer ones.
  static Layer memory(std::uint64_t seed) {
    LayerShape shape = shape_of({16, 1, 2, 300}, {2900, 9000, 900, 700});
    shape.padding_q = 2;
    Layer layer = device_layer(shape, seed, seed);
    layer.config.max_seqlen_k = 1 << 20;
    return layer;
  }

  /// Rank 1 of 3, with what the others would send it.
  static Layer step(std::uint64_t seed, const Lengths& seqlens_q, const Lengths& seqlens_k) {
    Layer layer = with_lengths(memory(seed), seqlens_q, seqlens_k);
    layer.add({{"topk_indices", random_selection(layer, 3)}});
    const Layer parts = with_parts(layer, 3);
    Layer shard = with_lengths(shard_of(memory(seed), 3, 1), seqlens_q, seqlens_k);
    shard.tensors["topk_indices"] = layer.tensors.at("topk_indices");
    shard.tensors["all_candidates"] = all_candidates(layer, 3);
    for (const char* name : {"partial_o", "partial_lse"}) shard.tensors[name] = parts.tensors.at(name);
    return shard;
  }
};

TEST_F(ShardGraph, ReplayAfterChangesInPlaceEqualsAFreshRun) {
  const std::vector<Layer> steps = {
      step(1, {4, 1, 2, 300}, {100, 2000, 700, 400}),
      step(1, {5, 1, 2, 299}, {101, 2001, 701, 465}),
      step(2, {16, 1, 2, 300}, {2900, 9000, 900, 700}),  // full; other values in other pages
      step(2, {1, 1, 1, 1}, {16, 0, 0, 7}),              // shrunk, some of it to nothing
      step(1, {1, 1, 1, 1}, {0, 0, 0, 0}),               // no request left
      step(1, {0, 16, 1, 200}, {640, 7000, 1, 229}),
  };
  for (const openmsa_op op : {OPENMSA_OP_SELECT_CANDIDATES, OPENMSA_OP_MERGE_CANDIDATES, OPENMSA_OP_SPARSE_ATTENTION,
                              OPENMSA_OP_MERGE_PARTIALS}) {
    expect_replays_follow(steps, op);
  }
}

TEST_F(ShardGraph, TwentyReplaysAreEqual) {
  const Layer full = step(2, {16, 1, 2, 300}, {2900, 9000, 900, 700});
  for (const openmsa_op op : {OPENMSA_OP_SELECT_CANDIDATES, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_MERGE_PARTIALS}) {
    expect_equal_replays(full, op);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace openmsa::test
