// Where tensors lie in device memory, and how sequences share a batch.
#include "cuda/support/cases.h"
#include "cuda/support/fused_cache.h"
#include "cuda/support/judge.h"
#include "pitfalls/fixture.h"

namespace openmsa::test {
namespace {

class DeviceLayout : public OnHopper {};

LayerShape pages_shape(std::int32_t page_size) {
  return {.dtype = OPENMSA_BFLOAT16,
          .num_heads_q = 8,
          .block_size = 64,
          .page_size = page_size,
          .seqlens_q = {150, 1, 20},
          .seqlens_k = {150, 610, 333}};
}

TEST_F(DeviceLayout, OrderAndSizeOfPagesDoNotMatter) {
  const TensorMap contiguous = run_on_device(make_layer(pages_shape(0)), OPENMSA_OP_MSA_ATTENTION);
  for (const std::int32_t page_size : {64, 32, 16}) {
    for (const std::uint64_t page_seed : {1, 2}) {
      SCOPED_TRACE(testing::Message() << "page_size " << page_size << ", order " << page_seed);
      expect_same_bits(run_on_device(make_layer(pages_shape(page_size), 1, page_seed), OPENMSA_OP_MSA_ATTENTION),
                       contiguous);
    }
  }
}

TEST_F(DeviceLayout, PaddedRowsOfABatchGiveZero) {
  for (const openmsa_op op : {OPENMSA_OP_MSA_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION}) {
    Layer layer = make_layer({.dtype = OPENMSA_BFLOAT16,
                              .block_size = 64,
                              .page_size = 16,
                              .seqlens_q = {1, 1, 3, 1},
                              .seqlens_k = {0, 150, 0, 5},
                              .padding_q = 2});
    Buffer indices(OPENMSA_INT32, {2, layer.total_q(), 4});
    indices.fill(-1);
    indices.set({0, 1, 0}, 2);
    indices.set({1, 5, 0}, 0);
    layer.add({{"topk_indices", indices}});
    const TensorMap out = run_on_device(layer, op);
    for (const std::int64_t row : {0, 2, 3, 4, 6, 7}) {
      EXPECT_TRUE(is_zero(rows(out.at("o"), row, 1))) << "row " << row;
      for (std::int64_t h = 0; h < 4; ++h) EXPECT_EQ(out.at("lse").at({row, h}), -kInf) << "row " << row;
      if (op == OPENMSA_OP_MSA_ATTENTION) {
        EXPECT_EQ(selection_row(out.at("topk_indices"), 1, row), std::vector<std::int64_t>(4, -1)) << "row " << row;
      }
    }
    EXPECT_TRUE(is_finite(out.at("o")));
    EXPECT_FALSE(is_zero(rows(out.at("o"), 1, 1)));
  }
}

TEST_F(DeviceLayout, BatchesWithoutWorkGiveZero) {
  for (const std::int64_t seqlen_k : {0, 100}) {
    const Layer layer = make_layer(
        {.dtype = OPENMSA_FLOAT16, .block_size = 64, .seqlens_q = {0, 0}, .seqlens_k = {seqlen_k, 0}, .padding_q = 40});
    const TensorMap out = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION);
    EXPECT_TRUE(is_zero(out.at("o")));
    for (const double lse : out.at("lse").values()) ASSERT_EQ(lse, -kInf);
    for (const double index : out.at("topk_indices").values()) ASSERT_EQ(index, -1);
  }
}

TEST_F(DeviceLayout, OddBatchesMatchTheReference) {
  // Requests without queries, shorter than a block, with fewer blocks than topk, straddling any tile, with more queries
  // than keys.
  expect_layer(make_layer({.dtype = OPENMSA_BFLOAT16,
                           .num_heads_q = 8,
                           .block_size = 64,
                           .topk = 16,
                           .seqlens_q = {0, 1, 2, 0, 30, 63, 10, 0},
                           .seqlens_k = {9, 1, 2, 0, 31, 64, 4, 5}}));
}

TEST_F(DeviceLayout, ManySequencesMatchTheCpu) {
  LayerShape shape{.dtype = OPENMSA_BFLOAT16, .block_size = 64, .seqlens_q = {}, .seqlens_k = {}};
  for (std::int64_t b = 0; b < 600; ++b) {
    shape.seqlens_q.push_back(b % 4);
    shape.seqlens_k.push_back(b % 4 + b % 7 * 30);
  }
  expect_layer(make_layer(shape), OPENMSA_BACKEND_CPU);
}

TEST_F(DeviceLayout, GarbageInTailsOtherPagesAndPageZeroIsNotUsed) {
  // make_layer fills all of these with NaN; with Inf and with zeros the results must be the same.
  for (const std::int32_t page_size : {16, 64}) {
    const Layer layer = make_layer(pages_shape(page_size));
    const TensorMap expected = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION);
    EXPECT_TRUE(is_finite(expected.at("o")));
    for (const double garbage : {kInf, -kInf, 0.0}) {
      expect_same_bits(run_on_device(with_garbage(layer, garbage), OPENMSA_OP_MSA_ATTENTION), expected);
    }
  }
}

/// Behind the last page of a sequence the table may hold anything.
TEST_F(DeviceLayout, GarbageBehindTheTableIsNotUsed) {
  Layer layer = make_layer(pages_shape(16));
  const TensorMap expected = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION);
  Buffer& table = layer.tensors.at("block_table");
  for (std::int64_t i = 0; i < table.size(); ++i) {
    if (table[i] < 0) table.set(i, 1 << 30);
  }
  expect_same_bits(run_on_device(layer, OPENMSA_OP_MSA_ATTENTION), expected);
}

TEST_F(DeviceLayout, NanInBlocksThatNobodyChoseIsNotUsed) {
  Layer layer =
      make_layer({.dtype = OPENMSA_BFLOAT16, .block_size = 64, .topk = 2, .seqlens_q = {40}, .seqlens_k = {500}});
  std::vector<std::int64_t> indices;
  for (std::int64_t row = 0; row < 80; ++row) indices.insert(indices.end(), {1, 4});
  layer.add({{"topk_indices", int_buffer(indices, {2, 40, 2})}});
  const TensorMap expected = run_on_device(layer, OPENMSA_OP_SPARSE_ATTENTION);
  for (const char* name : {"k", "v"}) {
    fill_rows(layer.tensors.at(name), 0, 64, kNan);
    fill_rows(layer.tensors.at(name), 128, 256, kInf);
    fill_rows(layer.tensors.at(name), 320, 500, kNan);
  }
  expect_same_bits(run_on_device(layer, OPENMSA_OP_SPARSE_ATTENTION), expected);
}

/// Keys behind the last query of a tile (32 queries or a divisor), in its own kv_block and in later ones that it names.
TEST_F(DeviceLayout, NanInTheFutureIsNotUsed) {
  Layer layer =
      make_layer({.dtype = OPENMSA_BFLOAT16, .block_size = 64, .topk = 4, .seqlens_q = {90}, .seqlens_k = {290}});
  layer.add({{"topk_indices", random_selection(layer, 8)}});
  const TensorMap before = run_on_device(layer, OPENMSA_OP_SPARSE_ATTENTION);
  for (const char* name : {"k", "v"}) fill_rows(layer.tensors.at(name), 264, 290, kNan);
  const TensorMap after = run_on_device(layer, OPENMSA_OP_SPARSE_ATTENTION);
  EXPECT_TRUE(rows(before.at("o"), 0, 64).same_bits(rows(after.at("o"), 0, 64)));
  EXPECT_TRUE(rows(before.at("lse"), 0, 64).same_bits(rows(after.at("lse"), 0, 64)));
}

TEST_F(DeviceLayout, StridedInputsAndOutputs) {
  // Rows of a fused projection, heads with gaps, token-major indices, transposed lse.
  const Layer packed =
      make_layer({.dtype = OPENMSA_BFLOAT16, .block_size = 64, .seqlens_q = {140, 9}, .seqlens_k = {140, 420}});
  const TensorMap expected = run_on_device(packed, OPENMSA_OP_MSA_ATTENTION);
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  in["q"] = restrided(in["q"], {1000, 72, 1});
  in["k"] = restrided(in["k"], {64, 560 * 64, 1});  // head-major
  in["v"] = restrided(in["v"], {504, 136, 1});
  in["index_q"] = restrided(in["index_q"], {200, 104, 1});
  in["index_k"] = restrided(in["index_k"], {80, 1});
  in["cu_seqlens_q"] = restrided(in["cu_seqlens_q"], {3});
  in["cu_seqlens_k"] = restrided(in["cu_seqlens_k"], {2});
  const std::int64_t total_q = packed.total_q();
  const TensorMap poisoned = {{"o", Buffer::strided(OPENMSA_BFLOAT16, {total_q, 4, 64}, {504, 104, 1})},
                              {"lse", Buffer::strided(OPENMSA_FLOAT32, {total_q, 4}, {1, total_q + 5})},
                              {"topk_indices", Buffer::strided(OPENMSA_INT32, {2, total_q, 4}, {4, 11, 1})}};
  const DeviceCall call(strided, OPENMSA_OP_MSA_ATTENTION, poisoned);
  call.enqueue();
  TensorMap untouched = poisoned;
  for (const auto& [name, result] : call.results()) {
    EXPECT_EQ(result.values(), expected.at(name).values()) << name;
    untouched.at(name).assign(result.values());  // gaps as they were before
    EXPECT_TRUE(result.same_bits(untouched.at(name))) << name << " was written between its elements";
  }
}

TEST_F(DeviceLayout, StridedScoresAndTables) {
  Layer packed = make_layer(pages_shape(32));
  const TensorMap expected = run_on_device(packed, OPENMSA_OP_BLOCK_SCORES);
  const Shape shape = expected.at("block_scores").shape();
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  in["block_table"] = restrided(in["block_table"], {70, 3});
  in["seqlens_k"] = restrided(in["seqlens_k"], {5});
  const DeviceCall call(strided, OPENMSA_OP_BLOCK_SCORES,
                        {{"block_scores", Buffer::strided(OPENMSA_FLOAT32, shape, {3, 2 * 3 * shape[2], 6})}});
  call.enqueue();
  const TensorMap scores = call.results();
  EXPECT_EQ(scores.at("block_scores").values(), expected.at("block_scores").values());
  packed.add(expected);
  strided.add(scores);
  expect_same_bits(run_on_device(strided, OPENMSA_OP_TOPK), run_on_device(packed, OPENMSA_OP_TOPK));
}

TEST_F(DeviceLayout, KeysAndValuesAsHalvesOfOneBuffer) {
  const Layer separate = make_layer(pages_shape(16));
  const TensorMap expected = run_on_device(separate, OPENMSA_OP_MSA_ATTENTION);
  expect_same_from_fused_caches(separate, expected);
}

TEST_F(DeviceLayout, RequestsMayShareTheirPrefixPages) {
  // Both requests hold the same 64 tokens in the same pages, then go separate ways.
  const Layer layer = make_layer(
      {.dtype = OPENMSA_BFLOAT16, .block_size = 64, .page_size = 32, .seqlens_q = {1, 1}, .seqlens_k = {190, 180}});
  const CommonPrefix prefix(layer, 2);
  expect_same_bits(run_on_device(prefix.shared, OPENMSA_OP_MSA_ATTENTION),
                   run_on_device(prefix.copied, OPENMSA_OP_MSA_ATTENTION));
}

TEST_F(DeviceLayout, NeighbouringQueriesMayShareNoBlock) {
  // Whatever the size of a query tile: each row has its own two blocks, some none, and no row has the first blocks that
  // another one has.
  for (const std::int64_t seqlen_k :
       {416, 832}) {  // the tile's own blocks are named in one, past ones only in the other
    Layer layer = make_layer(
        {.dtype = OPENMSA_BFLOAT16, .block_size = 64, .topk = 2, .seqlens_q = {16, 16}, .seqlens_k = {seqlen_k, 32}});
    Buffer indices(OPENMSA_INT32, {2, 32, 2});
    indices.fill(-1);
    for (std::int64_t r = 0; r < 2; ++r) {
      for (std::int64_t t = 0; t < 16; ++t) {
        if (t % 5 == 4) continue;
        indices.set({r, t, 0}, static_cast<double>((t * 3 + r) % 6));
        indices.set({r, t, 1}, static_cast<double>((t * 3 + r + 2) % 6));
      }
    }
    layer.add({{"topk_indices", indices}});
    expect_attention(layer);
  }
}

}  // namespace
}  // namespace openmsa::test
