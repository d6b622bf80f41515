// fp8 keys, their scales, and the rounding of index_q, worked out by hand.
#include <gtest/gtest.h>

#include <cmath>

#include "ref/hand.h"

namespace openmsa::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kNear = 1e-6;  // scales are fp32

LayerShape hand_shape() {
  return {.dtype = OPENMSA_FLOAT64,
          .num_heads_q = 2,
          .num_heads_kv = 2,
          .head_dim = 16,
          .index_dim = 16,
          .block_size = 8,
          .topk = 2,
          .seqlens_q = {1},
          .seqlens_k = {20},
          .index_dtype = OPENMSA_FLOAT8_E4M3};
}

/// The last query of 20 tokens. amax of head 0 is 4: 4 * 112 = 448 and 0.3 * 112 = 33.6, which rounds to 32. amax of
/// head 1 is 0.6: 448 and 0.05 * 448 / 0.6 = 37.3, which rounds to 36. So index_q stands for (4, 2/7) and (0.6,
/// 27/560), and times 14 in channel 1 and 1/sqrt(16) token 3 scores 2 and 0.31875.
Layer scored_layer() {
  Layer layer = make_layer(hand_shape()).on(OPENMSA_BACKEND_REFERENCE);
  for (const char* name : {"index_q", "index_k"}) layer.tensors.at(name).fill(0);
  Buffer &index_q = layer.tensors.at("index_q"), &index_k = layer.tensors.at("index_k");
  index_q.set({0, 0, 0}, 4);
  index_q.set({0, 0, 1}, 0.3);
  index_q.set({0, 1, 0}, -0.6);
  index_q.set({0, 1, 1}, -0.05);
  index_k.set({3, 0}, 1);
  index_k.set({3, 1}, 14);
  index_k.set({9, 0}, 1);
  index_k.set({17, 0}, 3);
  return layer;
}

void expect_scores(const Layer& layer, std::int64_t head, const std::vector<double>& expected) {
  const Buffer scores = run(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  for (std::size_t b = 0; b < expected.size(); ++b) {
    EXPECT_NEAR(scores.at({head, 0, static_cast<std::int64_t>(b)}), expected[b], kNear) << "kv_block " << b;
  }
}

TEST(Fp8BlockScores, RoundTheQueryOfEachHead) {
  Layer layer = scored_layer();
  expect_scores(layer, 0, {2, 1, 3});
  Buffer& index_k = layer.tensors.at("index_k");  // head 1 scores what is negative
  for (std::int64_t i = 0; i < index_k.size(); ++i) index_k.set(i, -index_k[i]);
  expect_scores(layer, 1, {0.31875, 0.15, 0.45});
}

TEST(Fp8BlockScores, OneScaleAndScalesPerToken) {
  Layer layer = scored_layer();
  layer.tensors["index_k_scale"] = Buffer(OPENMSA_FLOAT32, {1}, {2.5});
  expect_scores(layer, 0, {5, 2.5, 7.5});
  Buffer scale(OPENMSA_FLOAT32, {20});
  scale.fill(1);
  scale.set(3, 0.5);
  scale.set(9, 7);
  scale.set(17, 0.25);
  layer.tensors["index_k_scale"] = scale;
  expect_scores(layer, 0, {1, 7, 0.75});
}

TEST(Fp8BlockScores, QueriesWithoutSizeScoreZeroAndNanStaysNan) {
  Layer layer = scored_layer();
  Buffer& index_q = layer.tensors.at("index_q");
  for (const double size : {0.0, 0x1p-118, 1e-45}) {
    index_q.fill(0);
    index_q.set({0, 0, 0}, size);
    expect_scores(layer, 0, {0, 0, 0});
  }
  index_q.set({0, 0, 0}, 0x1p-117);  // the least that counts: * 2^117 it is 1
  const Buffer scores = run(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  EXPECT_NEAR(scores.at({0, 0, 1}) * 0x1p117, 0.25, kNear);
  index_q.set({0, 0, 5}, kNan);
  EXPECT_TRUE(std::isnan(run(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores").at({0, 0, 0})));
}

/// Of 4 and 0.3, and of -0.6 and -0.05: e4m3 has 0.3125, -0.625 and -0.05078125.
TEST(Fp8BlockScores, CastQueriesAndExactOnes) {
  Layer layer = scored_layer();
  layer.config.index_q_rounding = OPENMSA_INDEX_Q_CAST;
  expect_scores(layer, 0, {(4 + 14 * 0.3125) / 4, 1, 3});
  layer.config.index_q_rounding = OPENMSA_INDEX_Q_EXACT;
  expect_scores(layer, 0, {(4 + 14 * 0.3) / 4, 1, 3});
  layer.tensors["index_k_scale"] = Buffer(OPENMSA_FLOAT32, {1}, {2.5});
  expect_scores(layer, 0, {2.5 * (4 + 14 * 0.3) / 4, 2.5, 7.5});
  Buffer& index_k = layer.tensors.at("index_k");  // head 1 scores what is negative
  for (std::int64_t i = 0; i < index_k.size(); ++i) index_k.set(i, -index_k[i]);
  expect_scores(layer, 1, {2.5 * (0.6 + 14 * 0.05) / 4, 2.5 * 0.6 / 4, 2.5 * 1.8 / 4});
  layer.config.index_q_rounding = OPENMSA_INDEX_Q_CAST;
  expect_scores(layer, 1, {2.5 * (0.625 + 14 * 0.05078125) / 4, 2.5 * 0.625 / 4, 2.5 * 1.875 / 4});
}

TEST(Fp8BlockScores, ACastSaturatesAndKeepsNan) {
  Layer layer = scored_layer();
  layer.config.index_q_rounding = OPENMSA_INDEX_Q_CAST;
  Buffer& index_q = layer.tensors.at("index_q");
  index_q.fill(0);
  for (const double value : {448.0, 464.0, 480.0, 1e30, std::numeric_limits<double>::infinity()}) {
    index_q.set({0, 0, 0}, value);
    expect_scores(layer, 0, {112, 112, 336});
  }
  for (const double value : {0x1p-10, 1e-45, 0.0}) {
    index_q.set({0, 0, 0}, value);
    expect_scores(layer, 0, {0, 0, 0});
  }
  index_q.set({0, 0, 0}, 0x1.8p-10);  // nearer to the least number that e4m3 has
  EXPECT_NEAR(run(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores").at({0, 0, 1}), 0x1p-11, 1e-12);
  index_q.set({0, 0, 5}, kNan);
  EXPECT_TRUE(std::isnan(run(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores").at({0, 0, 0})));
}

/// 20 tokens in pages of 4, two to a kv_block: page 5 - p of part p. Only pages 5, 3 and 1 begin a kv_block.
TEST(Fp8BlockScores, AScalePerBlockIsThatOfItsFirstPage) {
  Layer layer = scored_layer();
  const Buffer index_k = layer.tensors.at("index_k");
  layer.config.page_size = layer.shape.page_size = 4;
  layer.config.index_scale_per_block = 1;
  Buffer cache(OPENMSA_FLOAT8_E4M3, {6, 4, 16});
  for (std::int64_t j = 0; j < 20; ++j) {
    for (std::int64_t c = 0; c < 16; ++c) cache.set({5 - j / 4, j % 4, c}, index_k.at({j, c}));
  }
  layer.tensors["index_k_cache"] = cache;
  layer.tensors["block_table"] = int_buffer({5, 4, 3, 2, 1}, {1, 5});
  layer.tensors["index_k_scale"] = Buffer(OPENMSA_FLOAT32, {6}, {kNan, 5, kNan, 0.5, kNan, 3});
  expect_scores(layer, 0, {6, 0.5, 15});
}

/// One query over 3 tokens in entries 0 to 2 of page 2; scales of all other places are NaN, and so are their numbers.
Layer paged_layer() {
  LayerShape shape = hand_shape();
  shape.page_size = 4;
  shape.seqlens_k = {3};
  shape.kv_dtype = OPENMSA_FLOAT8_E4M3;
  Layer layer = make_layer(shape).on(OPENMSA_BACKEND_REFERENCE);
  layer.config.softmax_scale = 1;
  TensorMap& tensors = layer.tensors;
  tensors["q"].fill(0);
  tensors["q"].set({0, 0, 0}, 1);
  tensors["block_table"] = int_buffer({2}, {1, 1});
  for (const char* name : {"k_cache", "v_cache"}) {
    tensors[name] = Buffer(OPENMSA_FLOAT8_E4M3, {3, 4, 2, 16});
    for (std::int64_t i = 0; i < 3 * 2 * 16; ++i) tensors[name].set(8 * 2 * 16 + i, 0);
  }
  return layer;
}

TEST(Fp8Attention, ScalesPerTokenAndHead) {
  // Every number is 1. Head 0 scores log(j + 1), head 1 (q = 0) all alike; the values are j and 10 j.
  Layer layer = paged_layer();
  Buffer k_scale(OPENMSA_FLOAT32, {2, 12}), v_scale = k_scale;
  for (std::int64_t j = 0; j < 3; ++j) {
    for (std::int64_t head = 0; head < 2; ++head) {
      layer.tensors.at("k_cache").set({2, j, head, 0}, 1);
      layer.tensors.at("v_cache").set({2, j, head, 0}, 1);
      k_scale.set({head, 8 + j}, head == 0 ? std::log(j + 1) : 1);
      v_scale.set({head, 8 + j}, static_cast<double>(head == 0 ? j : 10 * j));
    }
  }
  layer.tensors["k_scale"] = k_scale;
  layer.tensors["v_scale"] = v_scale;
  const TensorMap out = run(layer, OPENMSA_OP_DENSE_ATTENTION);
  EXPECT_NEAR(out.at("lse").at({0, 0}), std::log(6), kNear);
  EXPECT_NEAR(out.at("lse").at({0, 1}), std::log(3), kNear);
  EXPECT_NEAR(out.at("o").at({0, 0, 0}), 8.0 / 6, kNear);
  EXPECT_NEAR(out.at("o").at({0, 1, 0}), 10, 1e-5);
}

TEST(Fp8Attention, OneScaleOrNone) {
  // k = v = j: with scales log 2 and 3 the weights are 1, 2, 4 and o = 3 (0 + 2 + 8) / 7; without, 1, e, e^2.
  Layer layer = paged_layer();
  for (std::int64_t j = 0; j < 3; ++j) {
    layer.tensors.at("k_cache").set({2, j, 0, 0}, static_cast<double>(j));
    layer.tensors.at("v_cache").set({2, j, 0, 0}, static_cast<double>(j));
  }
  const double e = std::exp(1.0), weight = 1 + e + e * e;
  const TensorMap plain = run(layer, OPENMSA_OP_DENSE_ATTENTION);
  EXPECT_NEAR(plain.at("lse").at({0, 0}), std::log(weight), kNear);
  EXPECT_NEAR(plain.at("o").at({0, 0, 0}), (e + 2 * e * e) / weight, kNear);
  layer.tensors["k_scale"] = Buffer(OPENMSA_FLOAT32, {1}, {std::log(2)});
  layer.tensors["v_scale"] = Buffer(OPENMSA_FLOAT32, {1}, {3});
  const TensorMap scaled = run(layer, OPENMSA_OP_DENSE_ATTENTION);
  EXPECT_NEAR(scaled.at("lse").at({0, 0}), std::log(7), kNear);
  EXPECT_NEAR(scaled.at("o").at({0, 0, 0}), 30.0 / 7, kNear);
}

/// Token 0 of page 2, new: k of head 0 is (2, -1, 0.3, 0 ...), of head 1 zeros; v is 1000 and NaN; index_k is (-8, 1).
Layer new_token() {
  Layer layer = paged_layer();
  TensorMap& tensors = layer.tensors;
  tensors["seqlens_k"] = int_buffer({1});
  for (const char* name : {"k", "v"}) tensors[name] = Buffer(OPENMSA_FLOAT64, {1, 2, 16});
  tensors["index_k"] = Buffer(OPENMSA_FLOAT64, {1, 16});
  tensors["index_k_cache"] = Buffer(OPENMSA_FLOAT8_E4M3, {3, 4, 16});
  for (const char* name : {"k", "v", "index_k"}) tensors[name].fill(0);
  tensors["k"].set(0, 2);
  tensors["k"].set(1, -1);
  tensors["k"].set(2, 0.3);
  tensors["v"].set({0, 0, 0}, 1000);
  tensors["v"].set({0, 1, 0}, kNan);
  tensors["v"].set({0, 1, 1}, 3);
  tensors["index_k"].set(0, -8);
  tensors["index_k"].set(1, 1);
  return layer;
}

TensorMap append(const Layer& layer, TensorMap scales) {
  TensorMap outputs = std::move(scales);
  for (const char* name : {"k_cache", "v_cache", "index_k_cache"}) outputs[name] = layer.tensors.at(name);
  run_into(layer, OPENMSA_OP_APPEND_KV, outputs);
  return outputs;
}

TEST(Fp8AppendKv, WithoutAScaleRoundsTheNumbers) {
  const TensorMap caches = append(new_token(), {});
  const Buffer &k = caches.at("k_cache"), &v = caches.at("v_cache");
  EXPECT_EQ(k.at({2, 0, 0, 0}), 2);
  EXPECT_EQ(k.at({2, 0, 0, 1}), -1);
  EXPECT_EQ(k.at({2, 0, 0, 2}), 0.3125);
  EXPECT_EQ(v.at({2, 0, 0, 0}), 448);
  EXPECT_TRUE(std::isnan(v.at({2, 0, 1, 0})));
  EXPECT_EQ(v.at({2, 0, 1, 1}), 3);
  EXPECT_EQ(caches.at("index_k_cache").at({2, 0, 0}), -8);
}

TEST(Fp8AppendKv, OneScaleIsReadAndDividesTheNumbers) {
  Layer layer = new_token();
  layer.tensors["k_scale"] = Buffer(OPENMSA_FLOAT32, {1}, {0.5});
  layer.tensors["v_scale"] = Buffer(OPENMSA_FLOAT32, {1}, {4});
  layer.tensors["index_k_scale"] = Buffer(OPENMSA_FLOAT32, {1}, {3});
  const TensorMap caches = append(layer, {});
  const Buffer &k = caches.at("k_cache"), &v = caches.at("v_cache"), &index_k = caches.at("index_k_cache");
  EXPECT_EQ(k.at({2, 0, 0, 0}), 4);
  EXPECT_EQ(k.at({2, 0, 0, 1}), -2);
  EXPECT_EQ(k.at({2, 0, 0, 2}), 0.625);  // of 0.6
  EXPECT_EQ(v.at({2, 0, 0, 0}), 256);    // of 250
  EXPECT_EQ(v.at({2, 0, 1, 1}), 0.75);
  EXPECT_EQ(index_k.at({2, 0, 0}), -2.75);    // of -8/3
  EXPECT_EQ(index_k.at({2, 0, 1}), 0.34375);  // of 1/3
  EXPECT_EQ(layer.tensors.at("k_scale")[0], 0.5);
}

TEST(Fp8AppendKv, ScalesPerTokenAreWritten) {
  const Buffer kv_scale(OPENMSA_FLOAT32, {2, 12});
  const TensorMap out = append(
      new_token(), {{"k_scale", kv_scale}, {"v_scale", kv_scale}, {"index_k_scale", Buffer(OPENMSA_FLOAT32, {12})}});
  const Buffer &k = out.at("k_cache"), &v = out.at("v_cache"), &index_k = out.at("index_k_cache");
  EXPECT_EQ(k.at({2, 0, 0, 0}), 448);
  EXPECT_EQ(k.at({2, 0, 0, 1}), -224);
  EXPECT_EQ(k.at({2, 0, 0, 2}), 64);  // of 67.2
  EXPECT_EQ(k.at({2, 0, 1, 0}), 0);
  EXPECT_EQ(v.at({2, 0, 0, 0}), 448);
  EXPECT_TRUE(std::isnan(v.at({2, 0, 1, 0})));
  EXPECT_EQ(v.at({2, 0, 1, 1}), 448);  // NaN does not count towards amax
  EXPECT_EQ(index_k.at({2, 0, 0}), -448);
  EXPECT_EQ(index_k.at({2, 0, 1}), 56);

  const Buffer &k_scale = out.at("k_scale"), &v_scale = out.at("v_scale"), &index_scale = out.at("index_k_scale");
  EXPECT_EQ(k_scale.at({0, 8}), 2.0f / 448);
  EXPECT_EQ(k_scale.at({1, 8}), 0);
  EXPECT_EQ(v_scale.at({0, 8}), 1000.0f / 448);
  EXPECT_EQ(v_scale.at({1, 8}), 3.0f / 448);
  EXPECT_EQ(index_scale[8], 8.0f / 448);
  for (std::int64_t slot = 0; slot < 12; ++slot) {
    if (slot == 8) continue;
    EXPECT_TRUE(std::isnan(k_scale.at({0, slot})) && std::isnan(index_scale[slot])) << "slot " << slot;
  }
}

/// The kv_block's scale is 8 / 28 of the first token; the second, 100, would be 350: it lies between 352 and 320.
TEST(Fp8AppendKv, TheFirstTokenScalesItsBlock) {
  Layer layer = new_token();
  layer.config.index_scale_per_block = 1;
  layer.tensors["seqlens_k"] = int_buffer({2});
  layer.tensors["cu_seqlens_q"] = int_buffer({0, 2});
  for (const char* name : {"k", "v"}) {
    layer.tensors[name] = Buffer(OPENMSA_FLOAT64, {2, 2, 16});
    layer.tensors[name].fill(0);
  }
  layer.config.max_total_q = 2;
  layer.tensors["index_k"] = Buffer(OPENMSA_FLOAT64, {2, 16});
  layer.tensors["index_k"].fill(0);
  layer.tensors["index_k"].set({0, 0}, -8);
  layer.tensors["index_k"].set({1, 3}, 100);
  const TensorMap out = append(layer, {{"index_k_scale", Buffer(OPENMSA_FLOAT32, {3})}});
  EXPECT_EQ(out.at("index_k_scale")[2], 8.0f / 28);
  EXPECT_TRUE(std::isnan(out.at("index_k_scale")[0]) && std::isnan(out.at("index_k_scale")[1]));
  EXPECT_EQ(out.at("index_k_cache").at({2, 0, 0}), -28);
  EXPECT_EQ(out.at("index_k_cache").at({2, 1, 3}), 352);
}

}  // namespace
}  // namespace openmsa::test
