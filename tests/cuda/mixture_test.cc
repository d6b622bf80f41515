// Calls whose sequences are served by different kernels: who serves which one follows from lengths on the device.
#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

using Lengths = std::vector<std::int64_t>;

/// Up to 8 query tokens of one tile of the index branch, 4 of one cluster.
LayerShape shape_of(Lengths seqlens_q, Lengths seqlens_k) {
  return {.dtype = OPENMSA_BFLOAT16,
          .num_heads_q = 8,
          .num_heads_kv = 2,
          .block_size = 64,
          .topk = 3,
          .page_size = 32,
          .seqlens_q = std::move(seqlens_q),
          .seqlens_k = std::move(seqlens_k)};
}

/// A plan as a serving engine has it, far larger than the call.
Layer in_large_plan(Layer layer) {
  layer.config.max_total_q = 8192;
  layer.config.max_seqlen_k = 1 << 20;
  layer.config.max_batch = 512;
  return layer;
}

class Mixture : public OnHopper {};

/// More sequences than the lanes of a warp: empty ones, single tokens, a few, both sides of sixteen, chunks of prompts.
Lengths mixed_queries(std::int64_t batch, std::uint64_t seed) {
  constexpr std::int64_t kQueries[] = {1, 1, 1, 0, 2, 3, 4, 5, 8, 16, 17, 40, 150};
  std::mt19937_64 random(seed);
  Lengths result;
  for (std::int64_t b = 0; b < batch; ++b) result.push_back(kQueries[random() % std::size(kQueries)]);
  return result;
}

Lengths keys_behind(const Lengths& queries, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Lengths result;
  for (const std::int64_t count : queries) {
    result.push_back(random() % 8 == 0 ? count / 2 : count + static_cast<std::int64_t>(random() % 1500));
  }
  return result;
}

TEST_F(Mixture, MatchesTheCpu) {
  for (const std::int64_t batch : {2, 31, 33, 90}) {
    for (const std::uint64_t seed : {1, 2}) {
      SCOPED_TRACE(testing::Message() << batch << " sequences, seed " << seed);
      Lengths queries = mixed_queries(batch, seed);
      queries[seed % 2] = 200;  // not few in all
      LayerShape shape = shape_of(queries, keys_behind(queries, seed));
      shape.padding_q = 5;
      expect_layer(device_layer(shape, seed), OPENMSA_BACKEND_CPU);
      if (HasFailure()) return;
    }
  }
}

TEST_F(Mixture, MatchesTheCpuWithFp8Caches) {
  for (const Scales scales : {Scales::kNone, Scales::kPerToken}) {
    const Lengths queries = {1, 4, 200, 0, 16, 17, 1};
    LayerShape shape = shape_of(queries, keys_behind(queries, 3));
    shape.kv_dtype = shape.index_dtype = OPENMSA_FLOAT8_E4M3;
    shape.scales = scales;
    expect_layer(device_layer(shape), OPENMSA_BACKEND_CPU);
  }
}

TEST_F(Mixture, ManySequencesOfOneKind) {
  expect_layer(device_layer(shape_of(Lengths(300, 1), Lengths(300, 400))), OPENMSA_BACKEND_CPU);
  expect_layer(device_layer(shape_of(Lengths(60, 4), Lengths(60, 400))), OPENMSA_BACKEND_CPU);
  expect_layer(device_layer(shape_of(Lengths(20, 17), Lengths(20, 400))), OPENMSA_BACKEND_CPU);
}

TEST_F(Mixture, OneChunkAmongEmptySequences) {
  Lengths queries(300, 0), keys(300, 0);
  queries[177] = keys[177] = 400;
  expect_layer(device_layer(shape_of(queries, keys)), OPENMSA_BACKEND_CPU);
  queries[177] = 1;  // and one token among them
  keys[177] = 900;
  expect_layer(device_layer(shape_of(queries, keys)), OPENMSA_BACKEND_CPU);
}

/// Both sides of every boundary between kernels, of a single sequence and beside decodes.
class RouteBoundary : public OnHopperWith<std::int64_t> {};
INSTANTIATE_TEST_SUITE_P(Queries, RouteBoundary, testing::Values(1, 2, 16, 17, 18, 57, 58, 64, 65, 121, 122, 257),
                         testing::PrintToStringParamName());

TEST_P(RouteBoundary, OfOneSequenceMatchesTheCpu) {
  expect_layer(device_layer(shape_of({GetParam()}, {3000})), OPENMSA_BACKEND_CPU);
}

TEST_P(RouteBoundary, BesideDecodesMatchesTheCpu) {
  Lengths queries(8, 1), keys(8, 500);
  queries[3] = GetParam();
  keys[3] = 3000;
  expect_layer(device_layer(shape_of(queries, keys)), OPENMSA_BACKEND_CPU);
}

TEST_P(RouteBoundary, ResultsDoNotDependOnThePlansCapacity) {
  const Layer layer = device_layer(shape_of({1, GetParam(), 1}, {500, 3000, 700}));
  for (const openmsa_op op : {OPENMSA_OP_SELECT_BLOCKS, OPENMSA_OP_MSA_ATTENTION}) {
    expect_same_bits(run(in_large_plan(layer), op), run(layer, op));
  }
}

TEST_P(RouteBoundary, WholeLayerEqualsItsParts) {
  for (const Layer& layer : {device_layer(shape_of({GetParam()}, {3000})),
                             device_layer(shape_of({1, GetParam(), 2, 1}, {500, 3000, 900, 700}))}) {
    Layer parts = layer;
    const TensorMap whole = run(layer, OPENMSA_OP_MSA_ATTENTION);
    const TensorMap selection = run(layer, OPENMSA_OP_SELECT_BLOCKS);
    expect_same_bits({{"topk_indices", whole.at("topk_indices")}}, selection);
    parts.add(selection);
    expect_same_bits({{"o", whole.at("o")}, {"lse", whole.at("lse")}}, run(parts, OPENMSA_OP_SPARSE_ATTENTION));
  }
}

/// The layer with other values in all sequences but `b`, in the same pages.
Layer among_others(const Layer& layer, std::size_t b) {
  const std::vector<std::int64_t>&queries = layer.shape.seqlens_q, &keys = layer.shape.seqlens_k;
  const auto sum = [b](const std::vector<std::int64_t>& lengths) {
    return std::accumulate(lengths.begin(), lengths.begin() + static_cast<std::ptrdiff_t>(b), std::int64_t{0});
  };
  Layer result = make_layer(layer.shape, 99).on(OPENMSA_BACKEND_CUDA);
  const auto keep = [&](const char* name, std::int64_t begin, std::int64_t count) {
    const Buffer kept = rows(layer.tensors.at(name), begin, count);
    Buffer& buffer = result.tensors.at(name);
    std::vector<std::byte> bytes = buffer.bytes();
    const auto row_bytes = static_cast<std::int64_t>(bytes.size()) / buffer.shape()[0];
    std::copy(kept.bytes().begin(), kept.bytes().end(), bytes.begin() + begin * row_bytes);
    buffer.assign_bytes(std::move(bytes));
  };
  for (const char* name : {"q", "index_q"}) keep(name, sum(queries), queries[b]);
  for (const char* name : {"k", "v", "index_k"}) keep(name, sum(keys), keys[b]);
  return in_pages(result, layer.shape.page_size);
}

/// Results of `layer` for query rows [begin, begin + count): o, lse, and topk_indices of every KV head.
TensorMap rows_of(const Layer& layer, std::int64_t begin, std::int64_t count) {
  const TensorMap all = run(layer, OPENMSA_OP_MSA_ATTENTION);
  TensorMap result = {{"o", rows(all.at("o"), begin, count)}, {"lse", rows(all.at("lse"), begin, count)}};
  const Buffer& indices = all.at("topk_indices");
  for (std::int64_t head = 0; head < indices.shape()[0]; ++head) {
    std::vector<std::int64_t> values;
    for (std::int64_t row = begin; row < begin + count; ++row) {
      for (std::int64_t slot = 0; slot < indices.shape()[2]; ++slot) {
        values.push_back(static_cast<std::int64_t>(indices.at({head, row, slot})));
      }
    }
    result["topk_indices " + std::to_string(head)] = int_buffer(values);
  }
  return result;
}

/// A sequence's bits are the same whatever the others hold. Alone, where other kernels may serve it, it chooses the same
/// kv_blocks, and its results lie within the tolerance.
TEST_P(RouteBoundary, ResultsDoNotDependOnTheOtherSequences) {
  const Layer layer = device_layer(shape_of({1, 200, GetParam(), 2, 1}, {500, 2000, 3000, 900, 700}));
  const TensorMap expected = rows_of(layer, 201, GetParam());
  expect_same_bits(rows_of(among_others(layer, 2), 201, GetParam()), expected);
  const Layer alone = in_pages(excerpt(layer, 2, 0, GetParam()), layer.shape.page_size);
  const TensorMap got = rows_of(alone, 0, GetParam());
  for (const char* name : {"topk_indices 0", "topk_indices 1"}) {
    EXPECT_TRUE(got.at(name).same_bits(expected.at(name))) << name;
  }
  EXPECT_LE(relative_error(got.at("o"), expected.at("o")), tolerance(layer.config.dtype).o);
  EXPECT_LE(absolute_error(got.at("lse"), expected.at("lse")), tolerance(layer.config.dtype).lse);
}

}  // namespace
}  // namespace openmsa::test
