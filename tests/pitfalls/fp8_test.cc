// fp8 keys: scales that are ignored or taken from the wrong place, garbage in what nobody owns.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/dtype.h"
#include "core/row_scale.h"
#include "pitfalls/fixture.h"
#include "support/compare.h"
#include "support/huge_memory.h"

namespace openmsa::test {
namespace {

LayerShape fp8_shape(Scales scales) {
  return {.page_size = 16,
          .seqlens_q = {20, 1, 0, 1},
          .seqlens_k = {70, 33, 9, 1},
          .kv_dtype = OPENMSA_FLOAT8_E4M3,
          .index_dtype = OPENMSA_FLOAT8_E4M3,
          .scales = scales};
}

class Fp8Pitfalls : public Pitfalls {};
INSTANTIATE_TEST_SUITE_P(Backends, Fp8Pitfalls, testing::Values(OPENMSA_BACKEND_REFERENCE, OPENMSA_BACKEND_CPU),
                         backend_name);

Buffer times(double factor, Buffer buffer) {
  for (std::int64_t i = 0; i < buffer.size(); ++i) buffer.set(i, buffer[i] * factor);
  return buffer;
}

/// Pitfall 15: scales that are ignored, or taken for 1.
/// A power of two goes through every product unrounded: what scales twice as large must do is known to the last bit.
TEST_P(Fp8Pitfalls, ScalesTwiceAsLargeAre) {
  for (const Scales scales : {Scales::kOne, Scales::kPerToken}) {
    const Layer before = layer(fp8_shape(scales));
    const auto doubled = [&](const char* name) {
      Layer result = before;
      result.tensors[name] = times(2, result.tensors.at(name));
      return result;
    };
    const Buffer o = run(before, OPENMSA_OP_DENSE_ATTENTION).at("o");
    EXPECT_EQ(run(doubled("v_scale"), OPENMSA_OP_DENSE_ATTENTION).at("o").values(), times(2, o).values());

    Layer larger_q = before;
    larger_q.tensors["q"] = times(2, larger_q.tensors.at("q"));
    expect_same_bits(run(doubled("k_scale"), OPENMSA_OP_DENSE_ATTENTION), run(larger_q, OPENMSA_OP_DENSE_ATTENTION));
    EXPECT_FALSE(run(larger_q, OPENMSA_OP_DENSE_ATTENTION).at("o").same_bits(o));

    const Buffer scores = run(before, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
    EXPECT_EQ(run(doubled("index_k_scale"), OPENMSA_OP_BLOCK_SCORES).at("block_scores").values(),
              times(2, scores).values());
  }
}

/// Pitfall 10, fp8.
TEST_P(Fp8Pitfalls, GarbageInTailsOtherPagesAndTheirScalesIsNotUsed) {
  // make_layer fills all of these with the NaN 0xff.
  const Layer clean = layer(fp8_shape(Scales::kPerToken));
  const TensorMap expected = run(clean, OPENMSA_OP_MSA_ATTENTION);
  EXPECT_TRUE(is_finite(expected.at("o")));
  for (const std::byte code : {std::byte{0x7f}, std::byte{0x7e}, std::byte{0}}) {
    for (const double scale : {kNan, kInf, 1e30, 0.0}) {
      Layer other = clean;
      for (const char* name : {"k_cache", "v_cache", "index_k_cache"}) {
        std::vector<std::byte> bytes = other.tensors.at(name).bytes();
        std::replace(bytes.begin(), bytes.end(), std::byte{0xff}, code);
        other.tensors.at(name).assign_bytes(bytes);
      }
      for (const char* name : {"k_scale", "v_scale", "index_k_scale"}) {
        Buffer& scales = other.tensors.at(name);
        for (std::int64_t i = 0; i < scales.size(); ++i) {
          if (std::isnan(scales[i])) scales.set(i, scale);
        }
      }
      expect_same_bits(run(other, OPENMSA_OP_MSA_ATTENTION), expected);
    }
  }
}

TEST_P(Fp8Pitfalls, NanOfLaterTokensDoesNotReachAnEarlierQuery) {
  // Tokens from 60 on are NaN, in their numbers or in their scales; queries 50 to 59 do not see them.
  const Layer clean = layer({.page_size = 16,
                             .seqlens_q = {20},
                             .seqlens_k = {70},
                             .kv_dtype = OPENMSA_FLOAT8_E4M3,
                             .index_dtype = OPENMSA_FLOAT8_E4M3,
                             .scales = Scales::kPerToken});
  const TensorMap expected = run(clean, OPENMSA_OP_MSA_ATTENTION);
  const auto place = [&](std::int64_t token) {
    return static_cast<std::int64_t>(clean.tensors.at("block_table")[token / 16]) * 16 + token % 16;
  };
  Layer codes = clean, scales = clean;
  for (std::int64_t token = 60; token < 70; ++token) {
    for (const char* name : {"k_cache", "v_cache"}) codes.tensors.at(name).set(place(token) * 128 + 5, kNan);
    codes.tensors.at("index_k_cache").set(place(token) * 64 + 5, kNan);
    for (const char* name : {"k_scale", "v_scale"}) scales.tensors.at(name).set({1, place(token)}, kNan);
    scales.tensors.at("index_k_scale").set(place(token), kNan);
  }
  for (const Layer& spoiled : {codes, scales}) {
    const TensorMap got = run(spoiled, OPENMSA_OP_MSA_ATTENTION);
    EXPECT_TRUE(rows(got.at("o"), 0, 10).same_bits(rows(expected.at("o"), 0, 10)));
    EXPECT_TRUE(rows(got.at("lse"), 0, 10).same_bits(rows(expected.at("lse"), 0, 10)));
    EXPECT_FALSE(is_finite(rows(got.at("o"), 10, 10)));
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
  Layer padded = layer(shape);
  for (const char* name : {"k", "v"}) padded.tensors[name] = Buffer(OPENMSA_FLOAT32, {4, 2, 64});
  padded.tensors["index_k"] = Buffer(OPENMSA_FLOAT32, {4, 64});
  TensorMap outputs = poisoned_outputs(padded, OPENMSA_OP_APPEND_KV);
  for (auto& [name, buffer] : outputs) buffer.fill(2);
  const TensorMap before = outputs;
  run_into(padded, OPENMSA_OP_APPEND_KV, outputs);
  expect_same_bits(outputs, before);
}

/// The layer's own numbers in fp32, as they stand in the outputs of append_kv.
Buffer dequantised(const Buffer& cache, const Buffer& scale, const Layer& layer) {
  const std::int64_t heads = cache.shape().size() == 4 ? cache.shape()[2] : 1, channels = cache.shape().back();
  const std::int64_t tokens = cache.shape()[0] * cache.shape()[1];
  Buffer result(OPENMSA_FLOAT32, cache.shape());
  for (std::int64_t i = 0; i < cache.size(); ++i) {
    const std::int64_t token = i / (heads * channels), head = i / channels % heads;
    const bool per_token = layer.shape.scales == Scales::kPerToken;
    const double factor = layer.shape.scales == Scales::kNone ? 1 : scale[per_token ? head * tokens + token : 0];
    result.set(i, cache[i] * factor);
  }
  return result;
}

/// e4m3(x * (448 / amax)) * (amax / 448) of every row.
Buffer rounded_rows(Buffer rows) {
  const std::int64_t channels = rows.shape().back();
  for (std::int64_t row = 0; row < rows.size() / channels; ++row) {
    float amax = 0;
    for (std::int64_t c = 0; c < channels; ++c) amax = std::max(amax, std::abs(float(rows[row * channels + c])));
    for (std::int64_t c = 0; c < channels; ++c) {
      const float scaled = static_cast<float>(rows[row * channels + c]) * (448 / amax);
      rows.set(row * channels + c, core::to_float(core::to_float8_e4m3(scaled)) * (amax / 448));
    }
  }
  return rows;
}

/// Pitfall 15: scales of one head or token used for another.
TEST_P(Fp8Pitfalls, AttentionOverAppendedTokensIsThatOverTheirNumbers) {
  for (const Scales scales : {Scales::kNone, Scales::kOne, Scales::kPerToken}) {
    LayerShape shape = fp8_shape(scales);
    shape.seqlens_q = shape.seqlens_k = {70, 33};
    Layer fp8 = layer(shape);
    TensorMap caches = poisoned_outputs(fp8, OPENMSA_OP_APPEND_KV);
    run_into(fp8, OPENMSA_OP_APPEND_KV, caches);
    fp8.add(caches);

    shape.kv_dtype = shape.index_dtype = OPENMSA_FLOAT32;
    shape.scales = Scales::kNone;
    Layer plain = layer(shape);
    plain.tensors["block_table"] = fp8.tensors.at("block_table");
    for (const std::string name : {"k", "v", "index_k"}) {
      const Buffer scale = scales == Scales::kNone ? Buffer() : fp8.tensors.at(name + "_scale");
      plain.tensors[name + "_cache"] = dequantised(caches.at(name + "_cache"), scale, fp8);
    }
    plain.tensors["index_q"] = rounded_rows(plain.tensors.at("index_q"));

    const TensorMap got = run(fp8, OPENMSA_OP_MSA_ATTENTION), expected = run(plain, OPENMSA_OP_MSA_ATTENTION);
    EXPECT_TRUE(is_finite(got.at("o")));
    EXPECT_TRUE(got.at("topk_indices").same_bits(expected.at("topk_indices")));
    EXPECT_LT(relative_error(got.at("o"), expected.at("o")), 1e-6);
    EXPECT_LT(absolute_error(got.at("lse"), expected.at("lse")), 1e-5);
    EXPECT_LT(absolute_error(run(fp8, OPENMSA_OP_BLOCK_SCORES).at("block_scores"),
                             run(plain, OPENMSA_OP_BLOCK_SCORES).at("block_scores")),
              1e-5);
    // What has been rounded is near what went in: 3 bits of mantissa.
    const Layer exact = layer({.page_size = 16, .seqlens_q = {70, 33}, .seqlens_k = {70, 33}});
    EXPECT_LT(
        relative_error(run(fp8, OPENMSA_OP_DENSE_ATTENTION).at("o"), run(exact, OPENMSA_OP_DENSE_ATTENTION).at("o")),
        0.1);
  }
}

/// Pitfall 12, fp8.
TEST_P(Fp8Pitfalls, StridedCachesAndScales) {
  Layer packed = layer(fp8_shape(Scales::kPerToken));
  const TensorMap expected = run(packed, OPENMSA_OP_MSA_ATTENTION);
  const Layer rows_to_append = packed;
  TensorMap& in = packed.tensors;
  in["k_cache"] = restrided(in["k_cache"], {16 * 2 * 70, 70, 16 * 70, 1});  // heads before tokens
  in["v_cache"] = restrided(in["v_cache"], {5000, 140, 67, 1});
  in["index_k_cache"] = restrided(in["index_k_cache"], {2000, 65, 1});
  in["k_scale"] = restrided(in["k_scale"], {1, 3});  // tokens before heads
  in["v_scale"] = restrided(in["v_scale"], {1000, 2});
  in["index_k_scale"] = restrided(in["index_k_scale"], {5});
  expect_same_bits(run(packed, OPENMSA_OP_MSA_ATTENTION), expected);

  // Written through the same strides.
  Layer append = packed;
  for (const char* name : {"k", "v", "index_k"}) append.tensors[name] = rows(append.tensors.at(name), 0, 22);
  TensorMap strided = poisoned_outputs(append, OPENMSA_OP_APPEND_KV), dense = strided;
  for (auto& [name, buffer] : dense) buffer = rows_to_append.tensors.at(name);
  for (auto& [name, buffer] : strided) buffer = in.at(name);
  run_into(append, OPENMSA_OP_APPEND_KV, dense);
  run_into(append, OPENMSA_OP_APPEND_KV, strided);
  for (const auto& [name, buffer] : dense) {
    EXPECT_TRUE(buffer.as(buffer.dtype()).same_bits(strided.at(name).as(buffer.dtype()))) << name;
  }
}

/// Pitfall 8, fp8.
TEST_P(Fp8Pitfalls, OffsetsPast32BitsReachTheRightElements) {
  const Layer small = layer(fp8_shape(Scales::kPerToken));
  TensorMap outputs = poisoned_outputs(small, OPENMSA_OP_MSA_ATTENTION);
  Tensors tensors = gather(small, OPENMSA_OP_MSA_ATTENTION, outputs);
  for (const auto member : {&Tensors::k_cache, &Tensors::v_cache, &Tensors::index_k_cache, &Tensors::k_scale,
                            &Tensors::v_scale, &Tensors::index_k_scale}) {
    const HugeTensor huge(tensors.*member);
    if (!huge.is_mapped()) GTEST_SKIP() << "the system does not lend enough address space";
    Tensors spread = tensors;
    spread.*member = huge.view();
    Workspace workspace;
    Plan(small.config).run(OPENMSA_OP_MSA_ATTENTION, spread, workspace);
    expect_same_bits(outputs, run(small, OPENMSA_OP_MSA_ATTENTION));
  }
}

}  // namespace
}  // namespace openmsa::test
