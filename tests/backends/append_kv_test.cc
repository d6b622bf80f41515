// New tokens into paged caches on every backend: bit by bit what its judge stores, and nothing else.
#include "support/append_kv.h"

#include <gtest/gtest.h>

#include <utility>

#include "support/shapes.h"

namespace openmsa::test {
namespace {

class AppendKv : public OnBackend {
 protected:
  /// One token, drafts, none, a prompt, padding with and without rows, a chunk behind a prefix.
  static LayerShape shape(std::int32_t page_size) {
    return {.dtype = OPENMSA_BFLOAT16,
            .block_size = 128,
            .page_size = page_size,
            .seqlens_q = {1, 16, 0, 130, 2, 0, 1, 70},
            .seqlens_k = {1, 129, 40, 130, 0, 0, 256, 333},
            .padding_q = 3};
  }

  Layer new_tokens(const LayerShape& wanted) const { return with_new_keys(make_layer(wanted), 3).on(GetParam().id); }
};
INSTANTIATE_TEST_SUITE_P(Backends, AppendKv, testing::ValuesIn(judged_backends()), backend_test_name);

TEST_P(AppendKv, EveryShapeMatchesTheJudge) {
  for (const std::int32_t page_size : {16, 32, 64, 128}) {
    for (const openmsa_dtype dtype : {OPENMSA_BFLOAT16, OPENMSA_FLOAT16}) {
      for (const auto& [num_heads_kv, head_dim] : {std::pair{1, 64}, {1, 128}, {5, 64}, {8, 128}}) {
        SCOPED_TRACE(testing::Message() << "page_size " << page_size << ", " << num_heads_kv << " heads of " << head_dim
                                        << ", dtype " << dtype);
        LayerShape wanted = shape(page_size);
        wanted.dtype = dtype;
        wanted.num_heads_q = wanted.num_heads_kv = num_heads_kv;
        wanted.head_dim = head_dim;
        wanted.index_dim = 192 - head_dim;
        const Layer layer = new_tokens(wanted);
        expect_appended(layer, stored(layer));
      }
    }
  }
}

TEST_P(AppendKv, WithoutIndexKeys) {
  Layer layer = new_tokens(shape(32));
  layer.tensors.erase("index_k");
  TensorMap caches_alone = stored(layer);
  caches_alone.erase("index_k_cache");
  expect_appended(layer, caches_alone);
}

TEST_P(AppendKv, OneTokenOfManySequences) {
  LayerShape many = shape(16);
  many.seqlens_q.assign(300, 1);
  many.seqlens_k.clear();
  for (std::int64_t b = 0; b < 300; ++b) many.seqlens_k.push_back(b % 50);
  const Layer layer = new_tokens(many);
  expect_appended(layer, stored(layer));
}

/// Head-major pages, and pages, tokens and heads with gaps between them, which stay as they were.
TEST_P(AppendKv, CachesOfAnyStrides) {
  const Layer layer = new_tokens(shape(16));
  const TensorMap packed = stored(layer);
  for (const Shape& strides : {Shape{2 * 16 * 64, 64, 16 * 64, 1}, Shape{3200, 200, 88, 1}, Shape{8000, 72, 1200, 1}}) {
    TensorMap strided = packed;
    for (const char* name : {"k_cache", "v_cache"}) strided[name] = restrided(packed.at(name), strides);
    strided["index_k_cache"] = restrided(packed.at("index_k_cache"), {strides[0], strides[1], 1});
    expect_appended(layer, strided);
  }
}

TEST_P(AppendKv, StridedRowsAndTables) {
  const Layer packed = new_tokens(shape(32));
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  in["k"] = restrided(in["k"], {504, 136, 1});
  in["v"] = restrided(in["v"], {64, 240 * 64, 1});  // head-major
  in["index_k"] = restrided(in["index_k"], {80, 1});
  in["block_table"] = restrided(in["block_table"], {70, 3});
  in["seqlens_k"] = restrided(in["seqlens_k"], {5});
  in["cu_seqlens_q"] = restrided(in["cu_seqlens_q"], {2});
  expect_same_bits(appended(strided, stored(packed)), judged_append(packed, stored(packed)));
}

/// A cache filled in steps holds what one filled at once holds.
TEST_P(AppendKv, StepByStepEqualsAllAtOnce) {
  const Layer whole = layer({.page_size = 16, .seqlens_q = {150}, .seqlens_k = {150}});
  TensorMap stepwise = stored(whole);
  for (auto& [name, cache] : stepwise) cache = Buffer(cache.dtype(), cache.shape());
  std::int64_t done = 0;
  for (const std::int64_t count : {70, 1, 16, 3, 1, 40, 5, 14}) {
    Layer step = whole;
    step.tensors["cu_seqlens_q"] = int_buffer({0, count});
    step.tensors["seqlens_k"] = int_buffer({done + count});
    for (const char* name : {"k", "v", "index_k"}) step.tensors[name] = rows(whole.tensors.at(name), done, count);
    stepwise = appended(step, stepwise);
    done += count;
  }
  expect_same_bits(stepwise, stored(whole));
}

TEST_P(AppendKv, GarbageBehindTheTableIsNotUsed) {
  Layer layer = new_tokens(shape(16));
  const TensorMap expected = appended(layer, stored(layer));
  Buffer& table = layer.tensors.at("block_table");
  for (std::int64_t i = 0; i < table.size(); ++i) {
    if (table[i] < 0) table.set(i, 1 << 30);
  }
  expect_same_bits(appended(layer, stored(layer)), expected);
}

/// Every dtype and shape that attention serves.
class AppendKvShapes : public OnBackendShape {};
INSTANTIATE_TEST_SUITE_P(Shapes, AppendKvShapes, testing::ValuesIn(attention_shapes()), backend_shape_name);

TEST_P(AppendKvShapes, MatchTheJudge) {
  if (layer_.shape.page_size == 0) GTEST_SKIP() << "contiguous keys";
  const Layer layer = with_new_keys(layer_, 3);
  expect_appended(layer, stored(layer));
}

}  // namespace
}  // namespace openmsa::test
