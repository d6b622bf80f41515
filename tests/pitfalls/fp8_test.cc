// fp8 keys: scales that are ignored or taken from the wrong place, garbage in what nobody owns.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "pitfalls/fixture.h"
#include "pitfalls/fp8_layer.h"
#include "support/compare.h"
#include "support/fused_rows.h"

namespace openmsa::test {
namespace {

constexpr const char* kScales[] = {"k_scale", "v_scale", "index_k_scale"};

class Fp8Pitfalls : public OnBackend {
 protected:
  /// Sequences of 333, 70 and 515 keys, with as many queries as they say.
  Layer batch(std::vector<std::int64_t> seqlens_q) const {
    LayerShape shape = fp8_shape(Scales::kPerToken);
    shape.num_heads_q = 8;
    shape.topk = 3;
    shape.page_size = 32;
    shape.seqlens_q = std::move(seqlens_q);
    shape.seqlens_k = {333, 70, 515};
    shape.padding_q = 2;
    return layer(shape);
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, Fp8Pitfalls, testing::ValuesIn(backends()), backend_test_name);

Buffer times(double factor, Buffer buffer) {
  for (std::int64_t i = 0; i < buffer.size(); ++i) buffer.set(i, buffer[i] * factor);
  return buffer;
}

/// Pitfall 15: scales that are ignored, or taken for 1.
/// A power of two goes through every product unrounded: what scales twice as large must do is known to the last bit.
TEST_P(Fp8Pitfalls, ScalesTwiceAsLargeAre) {
  for (const Scales scales : {Scales::kOne, Scales::kPerToken, Scales::kPerBlock}) {
    Layer before = layer(fp8_shape(scales));
    before.add(judged(before, OPENMSA_OP_SELECT_BLOCKS));
    const auto doubled = [&](const char* name) {
      Layer result = before;
      result.tensors[name] = times(2, result.tensors.at(name));
      return result;
    };
    const Buffer o = run(before, OPENMSA_OP_SPARSE_ATTENTION).at("o");
    EXPECT_EQ(run(doubled("v_scale"), OPENMSA_OP_SPARSE_ATTENTION).at("o").values(), times(2, o).values());

    const Layer larger_q = doubled("q");
    const TensorMap larger = run(larger_q, OPENMSA_OP_SPARSE_ATTENTION);
    expect_same_bits(run(doubled("k_scale"), OPENMSA_OP_SPARSE_ATTENTION), larger);
    EXPECT_FALSE(larger.at("o").same_bits(o));

    const Buffer scores = run(before, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
    EXPECT_EQ(run(doubled("index_k_scale"), OPENMSA_OP_BLOCK_SCORES).at("block_scores").values(),
              times(2, scores).values());
  }
}

/// Pitfall 10, fp8.
TEST_P(Fp8Pitfalls, GarbageInTailsOtherPagesAndTheirScalesIsNotUsed) {
  // make_layer fills all of these with the NaN 0xff.
  for (const Layer& clean :
       {layer(fp8_shape(Scales::kPerToken)), layer(fp8_shape(Scales::kPerBlock)), batch({1, 8, 16})}) {
    const TensorMap expected = run(clean, OPENMSA_OP_MSA_ATTENTION);
    EXPECT_TRUE(is_finite(expected.at("o")));
    for (const std::byte code : {std::byte{0x7f}, std::byte{0x7e}, std::byte{0xfe}, std::byte{0}}) {
      for (const double scale : {kNan, kInf, 1e30, 0.0}) {
        Layer other = clean;
        for (const char* name : kCaches) {
          std::vector<std::byte> bytes = other.tensors.at(name).bytes();
          std::replace(bytes.begin(), bytes.end(), std::byte{0xff}, code);
          other.tensors.at(name).assign_bytes(bytes);
        }
        for (const char* name : kScales) {
          Buffer& scales = other.tensors.at(name);
          for (std::int64_t i = 0; i < scales.size(); ++i) {
            if (std::isnan(scales[i])) scales.set(i, scale);
          }
        }
        expect_same_bits(run(other, OPENMSA_OP_MSA_ATTENTION), expected);
      }
    }
  }
}

/// Pitfalls 1 and 10: NaN in the codes or in the scales of later draft tokens.
TEST_P(Fp8Pitfalls, NanOfLaterTokensDoesNotReachAnEarlierQuery) {
  constexpr std::int64_t kDrafts = 16, kPage = 32;
  const std::int64_t length = 5 * block() + 3;
  LayerShape drafts = fp8_shape(Scales::kPerToken);
  drafts.num_heads_q = 8;
  drafts.topk = 3;
  drafts.page_size = kPage;
  drafts.seqlens_q = {kDrafts};
  drafts.seqlens_k = {length};
  const Layer clean = layer(drafts);
  const TensorMap expected = run(clean, OPENMSA_OP_MSA_ATTENTION);
  for (const std::int64_t last : {3, 12}) {  // the last query that must not notice
    Layer codes = clean, scales = clean;
    for (std::int64_t token = length - kDrafts + last + 1; token < length; ++token) {
      const auto page = static_cast<std::int64_t>(clean.tensors.at("block_table")[token / kPage]);
      const std::int64_t slot = page * kPage + token % kPage;
      for (const char* name : {"k_cache", "v_cache"}) codes.tensors.at(name).set((slot * 2 + 1) * 64 + 5, kNan);
      codes.tensors.at("index_k_cache").set(slot * 64 + 5, kNan);
      for (const char* name : {"k_scale", "v_scale"}) scales.tensors.at(name).set({1, slot}, kNan);
      scales.tensors.at("index_k_scale").set(slot, kNan);
    }
    for (const Layer& spoiled : {codes, scales}) {
      const TensorMap got = run(spoiled, OPENMSA_OP_MSA_ATTENTION);
      for (const char* name : {"o", "lse"}) {
        EXPECT_TRUE(rows(got.at(name), 0, last + 1).same_bits(rows(expected.at(name), 0, last + 1))) << name << last;
      }
      EXPECT_FALSE(is_finite(rows(got.at("o"), last + 1, kDrafts - 1 - last)));
    }
  }
}

/// Pitfall 9, fp8.
TEST_P(Fp8Pitfalls, PaddedRowsOfABatchGiveZero) {
  LayerShape shape = fp8_shape(Scales::kPerToken);
  shape.seqlens_q = {1, 1, 3, 1};
  shape.seqlens_k = {0, 77, 0, 5};
  shape.padding_q = 2;
  const TensorMap out = run(layer(shape), OPENMSA_OP_MSA_ATTENTION);
  for (const std::int64_t row : {0, 2, 3, 4, 6, 7}) {
    EXPECT_TRUE(is_zero(rows(out.at("o"), row, 1))) << "row " << row;
    EXPECT_THAT(rows(out.at("lse"), row, 1).values(), testing::Each(-kInf)) << "row " << row;
  }
  EXPECT_TRUE(is_finite(out.at("o")));
  EXPECT_FALSE(is_zero(rows(out.at("o"), 1, 1)));
}

TEST_P(Fp8Pitfalls, PaddingStoresNoTokensAndNoScales) {
  LayerShape shape = fp8_shape(Scales::kPerToken);
  shape.seqlens_q = {1, 3};
  shape.seqlens_k = {0, 0};
  const Layer padded = with_new_keys(layer(shape), 3);
  TensorMap outputs = poisoned_outputs(padded, OPENMSA_OP_APPEND_KV);
  for (auto& [name, buffer] : outputs) buffer.fill(2);
  const TensorMap before = outputs;
  run_into(padded, OPENMSA_OP_APPEND_KV, outputs);
  expect_same_bits(outputs, before);
}

/// Pitfall 12, fp8: head-major pages, gaps, scales of all heads of a token side by side, halves of one cache.
TEST_P(Fp8Pitfalls, StridedCachesAndScales) {
  const std::int64_t dim = 64 + (GetParam().id == OPENMSA_BACKEND_CUDA ? 16 : 7);  // the GPU wants rows of 16 bytes
  for (const std::int64_t queries : {1, 8}) {
    const Layer packed = batch({queries, queries, queries});
    const TensorMap expected = run(packed, OPENMSA_OP_MSA_ATTENTION);
    Layer strided = packed;
    TensorMap& in = strided.tensors;
    in["k_cache"] = restrided(in["k_cache"], {2 * 32 * dim, dim, 32 * dim, 1});
    in["v_cache"] = restrided(in["v_cache"], {75 * dim, 2 * dim, dim, 1});
    in["index_k_cache"] = restrided(in["index_k_cache"], {40 * dim, dim, 1});
    in["k_scale"] = restrided(in["k_scale"], {1, 3});
    in["v_scale"] = restrided(in["v_scale"], {3 * in["v_scale"].shape()[1], 2});
    in["index_k_scale"] = restrided(in["index_k_scale"], {5});
    expect_same_bits(run(strided, OPENMSA_OP_MSA_ATTENTION), expected);

    for (const bool head_major : {false, true}) {
      const Buffer rows = fused_rows(packed.tensors.at("k_cache"), packed.tensors.at("v_cache"), head_major);
      TensorMap got = poisoned_outputs(packed, OPENMSA_OP_MSA_ATTENTION);
      run_into(packed, OPENMSA_OP_MSA_ATTENTION, got,
               [&](Tensors& tensors, const Place& place) { bind_halves(tensors, rows, place(rows)); });
      expect_same_bits(got, expected);
    }

    // Written through the same strides.
    const Layer append = with_new_keys(packed, 3);
    TensorMap apart = poisoned_outputs(append, OPENMSA_OP_APPEND_KV), dense = apart;
    for (auto& [name, buffer] : dense) buffer = packed.tensors.at(name);
    for (auto& [name, buffer] : apart) buffer = in.at(name);
    run_into(append, OPENMSA_OP_APPEND_KV, dense);
    run_into(append, OPENMSA_OP_APPEND_KV, apart);
    for (const auto& [name, buffer] : dense) {
      EXPECT_TRUE(buffer.as(buffer.dtype()).same_bits(apart.at(name).as(buffer.dtype()))) << name;
    }
  }
}

}  // namespace
}  // namespace openmsa::test
