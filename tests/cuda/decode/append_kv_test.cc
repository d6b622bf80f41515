// New tokens into paged caches on the GPU: bit by bit what the CPU backend stores, and nothing else.
#include <utility>

#include "cuda/decode/cases.h"
#include "cuda/support/fused_cache.h"
#include "cuda/support/judge.h"

namespace openmsa::test {
namespace {

class DeviceAppendKv : public OnHopper {
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

  static TensorMap caches(const Layer& layer) {
    TensorMap result;
    for (const char* name : {"k_cache", "v_cache", "index_k_cache"}) result[name] = layer.tensors.at(name);
    return result;
  }

  static TensorMap append_on_device(const Layer& layer, const TensorMap& caches) {
    const DeviceCall call(layer, OPENMSA_OP_APPEND_KV, caches);
    call.enqueue();
    return call.results();
  }

  static TensorMap append_on_cpu(const Layer& layer, TensorMap caches) {
    run_into(layer, OPENMSA_OP_APPEND_KV, caches);
    return caches;
  }

  static void expect_appended(const Layer& layer, const TensorMap& caches) {
    const TensorMap got = append_on_device(layer, caches);
    expect_same_bits(got, append_on_cpu(layer, caches));
    for (const auto& [name, cache] : caches) EXPECT_FALSE(cache.same_bits(got.at(name))) << name << " did not change";
  }
};

TEST_F(DeviceAppendKv, EveryShapeMatchesTheCpu) {
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
        const Layer layer = with_new_keys(make_layer(wanted), 3);
        expect_appended(layer, caches(layer));
      }
    }
  }
}

TEST_F(DeviceAppendKv, WithoutIndexKeys) {
  Layer layer = with_new_keys(make_layer(shape(32)), 3);
  layer.tensors.erase("index_k");
  TensorMap caches_alone = caches(layer);
  caches_alone.erase("index_k_cache");
  expect_appended(layer, caches_alone);
}

TEST_F(DeviceAppendKv, OneTokenOfManySequences) {
  LayerShape many = shape(16);
  many.seqlens_q.assign(300, 1);
  many.seqlens_k.clear();
  for (std::int64_t b = 0; b < 300; ++b) many.seqlens_k.push_back(b % 50);
  const Layer layer = with_new_keys(make_layer(many), 3);
  expect_appended(layer, caches(layer));
}

/// Head-major pages, and pages, tokens and heads with gaps between them, which stay as they were.
TEST_F(DeviceAppendKv, CachesOfAnyStrides) {
  const Layer layer = with_new_keys(make_layer(shape(16)), 3);
  const TensorMap packed = caches(layer);
  for (const Shape& strides : {Shape{2 * 16 * 64, 64, 16 * 64, 1}, Shape{3200, 200, 88, 1}, Shape{8000, 72, 1200, 1}}) {
    TensorMap strided = packed;
    for (const char* name : {"k_cache", "v_cache"}) strided[name] = restrided(packed.at(name), strides);
    strided["index_k_cache"] = restrided(packed.at("index_k_cache"), {strides[0], strides[1], 1});
    expect_appended(layer, strided);
  }
}

TEST_F(DeviceAppendKv, KeysAndValuesAsHalvesOfOneBuffer) {
  const Layer layer = with_new_keys(make_layer(shape(64)), 3);
  const TensorMap before = caches(layer);
  const TensorMap expected = append_on_cpu(layer, before);
  for (const bool head_major : {false, true}) {
    DeviceCall call(layer, OPENMSA_OP_APPEND_KV, before);
    const FusedCache fused(before, head_major);
    fused.bind(call.tensors());
    call.enqueue();
    const TensorMap apart = call.results();
    expect_same_bits(fused.separate(), {{"k_cache", expected.at("k_cache")}, {"v_cache", expected.at("v_cache")}});
    EXPECT_TRUE(apart.at("index_k_cache").same_bits(expected.at("index_k_cache")));
    EXPECT_TRUE(apart.at("k_cache").same_bits(before.at("k_cache"))) << "written where the call does not point";
  }
}

TEST_F(DeviceAppendKv, StridedRowsAndTables) {
  const Layer packed = with_new_keys(make_layer(shape(32)), 3);
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  in["k"] = restrided(in["k"], {504, 136, 1});
  in["v"] = restrided(in["v"], {64, 240 * 64, 1});  // head-major
  in["index_k"] = restrided(in["index_k"], {80, 1});
  in["block_table"] = restrided(in["block_table"], {70, 3});
  in["seqlens_k"] = restrided(in["seqlens_k"], {5});
  in["cu_seqlens_q"] = restrided(in["cu_seqlens_q"], {2});
  expect_same_bits(append_on_device(strided, caches(packed)), append_on_cpu(packed, caches(packed)));
}

/// A cache filled in steps holds what one filled at once holds.
TEST_F(DeviceAppendKv, StepByStepEqualsAllAtOnce) {
  const Layer whole = make_layer(
      {.dtype = OPENMSA_BFLOAT16, .block_size = 64, .page_size = 16, .seqlens_q = {150}, .seqlens_k = {150}});
  TensorMap stepwise = caches(whole);
  for (auto& [name, cache] : stepwise) cache = Buffer(cache.dtype(), cache.shape());
  std::int64_t done = 0;
  for (const std::int64_t count : {70, 1, 16, 3, 1, 40, 5, 14}) {
    Layer step = whole;
    step.tensors["cu_seqlens_q"] = int_buffer({0, count});
    step.tensors["seqlens_k"] = int_buffer({done + count});
    for (const char* name : {"k", "v", "index_k"}) step.tensors[name] = rows(whole.tensors.at(name), done, count);
    stepwise = append_on_device(step, stepwise);
    done += count;
  }
  expect_same_bits(stepwise, caches(whole));
}

/// Values in device memory cannot be checked: with more new tokens than keys, those in front of position 0 are not
/// stored. For the CPU they are the rows of padding in between.
TEST_F(DeviceAppendKv, NegativePositionsAreNotWritten) {
  LayerShape wanted = shape(16);
  wanted.seqlens_q = {5, 1, 16};
  wanted.seqlens_k = {3, 200, 4};
  const Layer layer = with_new_keys(make_layer(wanted), 3);
  const Buffer& table = layer.tensors.at("block_table");
  Layer padded = layer;
  padded.config.max_batch = 5;
  padded.tensors["cu_seqlens_q"] = int_buffer({0, 2, 5, 6, 18, 22});
  padded.tensors["seqlens_k"] = int_buffer({0, 3, 200, 0, 4});
  Buffer& rows_of_five = padded.tensors["block_table"] = Buffer(OPENMSA_INT32, {5, table.shape()[1]});
  rows_of_five.fill(-1);
  const std::int64_t row_of[] = {1, 2, 4};
  for (std::int64_t b = 0; b < 3; ++b) {
    for (std::int64_t p = 0; p < table.shape()[1]; ++p) rows_of_five.set({row_of[b], p}, table.at({b, p}));
  }
  expect_same_bits(append_on_device(layer, caches(layer)), append_on_cpu(padded, caches(layer)));
}

TEST_F(DeviceAppendKv, GarbageBehindTheTableIsNotUsed) {
  Layer layer = with_new_keys(make_layer(shape(16)), 3);
  const TensorMap expected = append_on_device(layer, caches(layer));
  Buffer& table = layer.tensors.at("block_table");
  for (std::int64_t i = 0; i < table.size(); ++i) {
    if (table[i] < 0) table.set(i, 1 << 30);
  }
  expect_same_bits(append_on_device(layer, caches(layer)), expected);
}

}  // namespace
}  // namespace openmsa::test
