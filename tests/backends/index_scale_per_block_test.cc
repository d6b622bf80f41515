// Index keys in e4m3 with a scale per kv_block, on every backend: what append_kv stores, however the tokens come, and
// what scores make of it.
#include <gtest/gtest.h>

#include <utility>

#include "pitfalls/fixture.h"
#include "support/append_kv.h"

namespace openmsa::test {
namespace {

class IndexScalePerBlock : public OnBackend {
 protected:
  /// One sequence of new tokens, in pages of half a kv_block.
  LayerShape shape(std::int64_t tokens) const {
    return {.page_size = static_cast<std::int32_t>(block() / 2),
            .seqlens_q = {tokens},
            .seqlens_k = {tokens},
            .index_dtype = OPENMSA_FLOAT8_E4M3,
            .scales = Scales::kPerBlock};
  }
  Layer new_tokens(std::int64_t tokens) const { return layer(shape(tokens)); }
  /// Tokens [begin, end) of the layer, appended to `caches`.
  static void append(const Layer& whole, std::int64_t begin, std::int64_t end, TensorMap& caches) {
    Layer part = with_lengths(whole, {end - begin}, {end});
    part.shape.padding_q = 0;
    for (const char* name : {"k", "v", "index_k"}) {
      part.tensors[name] = rows(whole.tensors.at(name), begin, end - begin);
    }
    part.tensors["block_table"] = whole.tensors.at("block_table");
    run_into(part, OPENMSA_OP_APPEND_KV, caches);
  }
  static TensorMap append_all(const Layer& whole) {
    TensorMap caches = poisoned_outputs(whole, OPENMSA_OP_APPEND_KV);
    append(whole, 0, whole.total_q(), caches);
    return caches;
  }
  /// The page of token j.
  static std::int64_t page(const Layer& layer, std::int64_t j) {
    return static_cast<std::int64_t>(layer.tensors.at("block_table")[j / layer.shape.page_size]);
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, IndexScalePerBlock, testing::ValuesIn(backends()), backend_test_name);

TEST_P(IndexScalePerBlock, PiecesOfAnySizeStoreWhatOneCallDoes) {
  const std::int64_t tokens = 3 * block() + 5;
  const Layer whole = new_tokens(tokens);
  const TensorMap expected = append_all(whole);
  for (const std::int32_t piece : {1, 7, block() - 1, block(), block() + 1}) {
    SCOPED_TRACE(testing::Message() << "pieces of " << piece);
    TensorMap caches = poisoned_outputs(whole, OPENMSA_OP_APPEND_KV);
    for (std::int64_t begin = 0; begin < tokens; begin += piece) {
      append(whole, begin, std::min(begin + piece, tokens), caches);
    }
    expect_same_bits(caches, expected);
  }
}

/// Every other page is the second one of a kv_block, and its entry is nobody's.
TEST_P(IndexScalePerBlock, OnlyTheFirstPageOfABlockHasAScale) {
  const Layer whole = new_tokens(2 * block() + 3);
  const Buffer scale = append_all(whole).at("index_k_scale");
  std::vector<bool> is_first(static_cast<std::size_t>(scale.size()));
  for (std::int64_t j = 0; j < whole.total_q(); j += block()) {
    is_first[static_cast<std::size_t>(page(whole, j))] = true;
    double amax = 0;
    for (std::int64_t c = 0; c < 64; ++c) amax = std::max(amax, std::abs(whole.tensors.at("index_k").at({j, c})));
    EXPECT_EQ(scale[page(whole, j)], static_cast<float>(amax) / 28) << "token " << j;
  }
  for (std::int64_t p = 0; p < scale.size(); ++p)
    EXPECT_EQ(std::isnan(scale[p]), !is_first[static_cast<std::size_t>(p)]);
}

TEST_P(IndexScalePerBlock, ANewBlockInOldPagesHasAScaleOfItsOwn) {
  const Layer old = new_tokens(2 * block());
  Layer other = old;
  Buffer& index_k = other.tensors.at("index_k");
  for (std::int64_t i = 0; i < index_k.size(); ++i) index_k.set(i, 64 * index_k[i]);
  TensorMap caches = append_all(old);
  append(other, 0, other.total_q(), caches);
  expect_same_bits(caches, append_all(other));
}

/// 16 times the first token's largest number is 448, what is larger too; a 28th of it is 1.
TEST_P(IndexScalePerBlock, LaterTokensHaveRoomUpToSixteenTimes) {
  Layer whole = new_tokens(5);
  Buffer& index_k = whole.tensors.at("index_k");
  index_k.fill(0);
  const std::pair<double, double> stored[] = {{-7, -28}, {112, 448}, {104, 416}, {-1024, -448}, {0.25, 1}};
  for (std::int64_t j = 0; j < 5; ++j) index_k.set({j, 0}, stored[j].first);
  const TensorMap caches = append_all(whole);
  EXPECT_EQ(caches.at("index_k_scale")[page(whole, 0)], 0.25);
  for (std::int64_t j = 0; j < 5; ++j)
    EXPECT_EQ(caches.at("index_k_cache").at({page(whole, 0), j, 0}), stored[j].second);
}

/// A first token without a size says nothing of those to come.
TEST_P(IndexScalePerBlock, TheScaleIsOneWhereTheFirstTokenHasNoSize) {
  const bool is_half = GetParam().dtype == OPENMSA_FLOAT16;
  for (const double value : {0.0, -0.0, 0x1p-133, 0x1p-118, kInf, -kInf, kNan}) {
    SCOPED_TRACE(value);
    Layer whole = new_tokens(3);
    Buffer& index_k = whole.tensors.at("index_k");
    index_k.fill(0);
    if (std::isnan(value)) fill_rows(index_k, 0, 1, value);
    index_k.set({0, 9}, is_half && std::abs(value) < 1 ? 0 : value);
    index_k.set({2, 1}, 3);
    const TensorMap caches = append_all(whole);
    EXPECT_EQ(caches.at("index_k_scale")[page(whole, 0)], 1);
    EXPECT_EQ(caches.at("index_k_cache").at({page(whole, 0), 2, 1}), 3);
  }
  Layer whole = new_tokens(2);
  Buffer& index_k = whole.tensors.at("index_k");
  index_k.fill(0);
  index_k.set({0, 9}, kNan);  // does not count towards amax
  index_k.set({0, 10}, 14);
  EXPECT_EQ(append_all(whole).at("index_k_scale")[page(whole, 0)], 0.5);
}

TEST_P(IndexScalePerBlock, OneScaleIsReadAndAnAbsentOneIsOne) {
  const Layer per_block = new_tokens(2 * block() + 1);
  for (const bool is_one : {false, true}) {
    Layer blocks = per_block, tokens = per_block;
    tokens.config.index_scale_per_block = 0;
    for (Layer* layer : {&blocks, &tokens}) {
      layer->tensors.erase("index_k_scale");
      if (is_one) layer->tensors["index_k_scale"] = Buffer(OPENMSA_FLOAT32, {1}, {0.5});
    }
    const auto results = [](const Layer& layer) {
      TensorMap caches = poisoned_outputs(layer, OPENMSA_OP_APPEND_KV, {"k_cache", "v_cache", "index_k_cache"});
      run_into(layer, OPENMSA_OP_APPEND_KV, caches);
      caches.merge(run(layer, OPENMSA_OP_BLOCK_SCORES));
      return caches;
    };
    expect_same_bits(results(blocks), results(tokens));
  }
}

/// The scale of a kv_block that begins after a query must not reach its row, nor that of a page in the middle of one.
TEST_P(IndexScalePerBlock, NanInScalesThatAQueryDoesNotReadIsNotUsed) {
  Layer clean = new_tokens(3 * block());
  clean.add(append_all(clean));
  Layer spoiled = clean;
  Buffer& scale = spoiled.tensors.at("index_k_scale");
  for (std::int64_t p = 0; p < scale.size(); ++p) {
    if (std::isnan(scale[p])) scale.set(p, 3);
  }
  scale.set(page(clean, 2 * block()), kNan);
  const Buffer expected = run(clean, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  const Buffer got = run(spoiled, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  for (std::int64_t t = 0; t < clean.total_q(); ++t) {
    for (std::int64_t b = 0; b < 3; ++b) {
      if (t >= 2 * block() && b == 2) {
        EXPECT_TRUE(std::isnan(got.at({0, t, b}))) << "query " << t;
      } else {
        EXPECT_EQ(got.at({0, t, b}), expected.at({0, t, b})) << "query " << t << ", kv_block " << b;
      }
    }
  }
}

/// The numbers that a scale per kv_block stores are about those of one per token.
TEST_P(IndexScalePerBlock, ScoresAreNearThoseOfExactKeys) {
  for (const auto rounding : {OPENMSA_INDEX_Q_CAST, OPENMSA_INDEX_Q_EXACT}) {
    Layer fp8 = new_tokens(3 * block() + 9), exact = fp8;
    fp8.config.index_q_rounding = rounding;
    fp8.add(append_all(fp8));
    exact.config.index_dtype = fp8.config.dtype;
    exact.config.index_scale_per_block = 0;
    exact.tensors.erase("index_k_scale");
    exact.tensors["index_k_cache"] = Buffer(fp8.config.dtype, fp8.tensors.at("index_k_cache").shape());
    exact.shape.index_dtype = {};
    TensorMap caches = poisoned_outputs(exact, OPENMSA_OP_APPEND_KV);
    run_into(exact, OPENMSA_OP_APPEND_KV, caches);
    exact.add(caches);
    const Buffer scores = run(fp8, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
    const Buffer expected = run(exact, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
    for (std::int64_t i = 0; i < scores.size(); ++i) {
      if (std::isfinite(expected[i])) {
        EXPECT_NEAR(scores[i], expected[i], 0.2);
      } else {
        EXPECT_EQ(scores[i], expected[i]);
      }
    }
  }
}

}  // namespace
}  // namespace openmsa::test
