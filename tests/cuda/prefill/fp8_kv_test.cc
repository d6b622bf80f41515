// Prompts over fp8 caches of k and v on the GPU: every kind of scale, NaN, and what nobody sees.
#include <cmath>
#include <random>
#include <utility>

#include "cuda/support/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "pitfalls/fixture.h"
#include "support/compare.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

constexpr openmsa_dtype kFp8 = OPENMSA_FLOAT8_E4M3;
constexpr Scales kKinds[] = {Scales::kNone, Scales::kOne, Scales::kPerToken};

class Fp8Prompts : public OnHopperWith<NamedShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, Fp8Prompts, testing::ValuesIn(fp8_kv_shapes()), shape_name);

TEST_P(Fp8Prompts, MatchTheReference) {
  Layer layer = device_layer(GetParam().shape);
  expect_layer(layer);
  for (const Buffer& indices : {random_selection(layer, 3), clustered_selection(layer, 3)}) {
    layer.tensors["topk_indices"] = indices;
    expect_attention(layer);
  }
}

class Fp8Groups : public OnHopperWith<std::int32_t> {};
INSTANTIATE_TEST_SUITE_P(Groups, Fp8Groups, testing::Values(1, 2, 4, 8, 16), testing::PrintToStringParamName());

TEST_P(Fp8Groups, OverManyBlocks) {
  for (const bool is_wide : {false, true}) {
    const openmsa_dtype dtype = is_wide ? OPENMSA_BFLOAT16 : OPENMSA_FLOAT16;
    LayerShape shape = many_blocks(dtype, GetParam(), is_wide ? 128 : 64);
    shape.page_size = 32;
    shape.kv_dtype = kFp8;
    shape.scales = Scales::kPerToken;
    Layer layer = device_layer(shape);
    for (const Buffer& indices : {random_selection(layer, 4), clustered_selection(layer, 4)}) {
      layer.tensors["topk_indices"] = indices;
      expect_attention(layer, OPENMSA_BACKEND_CPU);
    }
  }
}

class Fp8Prompt : public OnHopper {
 protected:
  static LayerShape shape() {
    return {.dtype = OPENMSA_BFLOAT16,
            .num_heads_q = 8,
            .head_dim = 128,
            .block_size = 64,
            .topk = 3,
            .page_size = 32,
            .seqlens_q = {300, 33, 77},
            .seqlens_k = {1001, 706, 77},
            .padding_q = 2,
            .kv_dtype = kFp8,
            .scales = Scales::kPerToken};
  }
};

Buffer times(double factor, Buffer buffer) {
  for (std::int64_t i = 0; i < buffer.size(); ++i) buffer.set(i, buffer[i] * factor);
  return buffer;
}

/// k_scale and v_scale are told apart, and need not be of one kind.
TEST_F(Fp8Prompt, ScalesOfKeysAndValuesMayDifferInKind) {
  const auto with_scale = [](Layer layer, const char* name, Scales scales, double value) {
    if (scales == Scales::kNone) layer.tensors.erase(name);
    if (scales == Scales::kOne) layer.tensors[name] = Buffer(OPENMSA_FLOAT32, {1}, {value});
    return layer;
  };
  const Layer layer = device_layer(shape());
  for (const Scales k : kKinds) {
    for (const Scales v : kKinds) {
      SCOPED_TRACE(testing::Message() << "kinds " << int(k) << " and " << int(v));
      expect_layer(with_scale(with_scale(layer, "k_scale", k, 0.4), "v_scale", v, 2.7));
    }
  }
}

/// A power of two goes through every product unrounded: what scales twice as large must do is known to the last bit.
TEST_F(Fp8Prompt, ScalesTwiceAsLargeAre) {
  for (const Scales scales : {Scales::kOne, Scales::kPerToken}) {
    LayerShape scaled = shape();
    scaled.scales = scales;
    Layer before = device_layer(scaled);
    before.add({{"topk_indices", random_selection(before, 7)}});
    const auto doubled = [&](const char* name) {
      Layer result = before;
      result.tensors[name] = times(2, result.tensors.at(name));
      return run(result, OPENMSA_OP_SPARSE_ATTENTION);
    };
    const TensorMap plain = run(before, OPENMSA_OP_SPARSE_ATTENTION);
    EXPECT_EQ(doubled("v_scale").at("o").values(), times(2, plain.at("o")).values());
    expect_same_bits(doubled("k_scale"), doubled("q"));
    EXPECT_FALSE(doubled("k_scale").at("o").same_bits(plain.at("o")));
  }
}

/// Scales of values that differ by many powers of two, in an order that raises and lowers them.
TEST_F(Fp8Prompt, ScalesOfValuesMayLieFarApart) {
  for (const openmsa_dtype dtype : {OPENMSA_BFLOAT16, OPENMSA_FLOAT16}) {
    LayerShape far = shape();
    far.dtype = dtype;
    for (const int spread : {4, 12}) {
      Layer layer = device_layer(far);
      std::mt19937_64 random(5);
      Buffer& scales = layer.tensors.at("v_scale");
      for (std::int64_t i = 0; i < scales.size(); ++i) {
        scales.set(i, scales[i] * std::exp2(static_cast<int>(random() % (2 * spread + 1)) - spread));
      }
      for (const Buffer& indices : {random_selection(layer, 3), clustered_selection(layer, 3)}) {
        layer.tensors["topk_indices"] = indices;
        expect_attention(layer);
      }
    }
  }
  // Far outside of what fp16 can hold, and zeros.
  Layer layer = device_layer(shape());
  layer.add({{"topk_indices", clustered_selection(layer, 3)}});
  const Buffer scales = layer.tensors.at("v_scale");
  for (const double factor : {0x1p-100, 0x1p+60}) {
    layer.tensors["v_scale"] = times(factor, scales);
    expect_attention(layer);
  }
  layer.tensors["v_scale"] = times(0, scales);
  EXPECT_TRUE(is_zero(run(layer, OPENMSA_OP_SPARSE_ATTENTION).at("o")));
}

TEST_F(Fp8Prompt, RepeatsAreEqualBitByBit) {
  for (const std::int32_t head_dim : {64, 128}) {
    LayerShape wide = shape();
    wide.head_dim = head_dim;
    Layer layer = device_layer(wide);
    layer.add({{"topk_indices", random_selection(layer, 9)}});
    const TensorMap expected = run(layer, OPENMSA_OP_SPARSE_ATTENTION);
    for (int repeat = 0; repeat < 20; ++repeat) expect_same_bits(run(layer, OPENMSA_OP_SPARSE_ATTENTION), expected);
  }
}

/// Where the scales lie changes nothing.
TEST_F(Fp8Prompt, ScalesMayLieApart) {
  const Layer packed = device_layer(shape());
  const TensorMap expected = run(packed, OPENMSA_OP_MSA_ATTENTION);
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  in["k_scale"] = restrided(in["k_scale"], {1, 3});
  in["v_scale"] = restrided(in["v_scale"], {3 * in["v_scale"].shape()[1], 2});
  expect_same_bits(run(strided, OPENMSA_OP_MSA_ATTENTION), expected);
}

/// Pitfall 10: whatever lies in the tails of pages, in pages of nobody, and in their scales.
TEST_F(Fp8Prompt, GarbageThatNobodyOwnsIsNotUsed) {
  for (const std::int32_t head_dim : {64, 128}) {
    LayerShape wide = shape();
    wide.head_dim = head_dim;
    const Layer clean = device_layer(wide);  // make_layer fills all of it with the NaN 0xff
    const TensorMap expected = run(clean, OPENMSA_OP_MSA_ATTENTION);
    EXPECT_TRUE(is_finite(expected.at("o")));
    for (const std::byte code : {std::byte{0x7f}, std::byte{0x7e}, std::byte{0}}) {
      for (const double scale : {kNan, kInf, 1e30, 0.0}) {
        Layer other = clean;
        for (const char* name : {"k_cache", "v_cache"}) {
          std::vector<std::byte> bytes = other.tensors.at(name).bytes();
          std::replace(bytes.begin(), bytes.end(), std::byte{0xff}, code);
          other.tensors.at(name).assign_bytes(bytes);
        }
        for (const char* name : {"k_scale", "v_scale"}) {
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

/// A NaN among the keys, the values or the scales of a token reaches the queries that see it; of the others at most those
/// of the same tile, and none with a key's.
TEST_F(Fp8Prompt, NanReachesWhoSeesIt) {
  constexpr std::int64_t kLength = 400, kToken = 200, kTile = 32;
  LayerShape one = shape();
  one.topk = 64;  // every kv_block
  one.page_size = 64;
  one.seqlens_q = {kLength};
  one.seqlens_k = {kLength};
  one.padding_q = 0;
  const Layer clean = device_layer(one);
  const TensorMap expected = run(clean, OPENMSA_OP_MSA_ATTENTION);
  const auto page = static_cast<std::int64_t>(clean.tensors.at("block_table")[kToken / 64]);
  const std::int64_t slot = page * 64 + kToken % 64;
  for (const char* name : {"k_cache", "v_cache", "k_scale", "v_scale"}) {
    SCOPED_TRACE(name);
    Layer spoiled = clean;
    Buffer& tensor = spoiled.tensors.at(name);
    const std::int64_t row = tensor.size() / (tensor.dtype() == kFp8 ? tensor.shape()[0] * 64 : 1);
    if (tensor.dtype() == kFp8) {
      for (std::int64_t i = 0; i < row; i += 128) tensor.set(slot * row + i + 77, kNan);  // of every head
    } else {
      for (std::int64_t r = 0; r < 2; ++r) tensor.set({r, slot}, kNan);
    }
    const TensorMap got = run(spoiled, OPENMSA_OP_MSA_ATTENTION);
    const std::int64_t untouched = name[0] == 'k' ? kToken : kToken - kTile;
    EXPECT_TRUE(rows(got.at("o"), 0, untouched).same_bits(rows(expected.at("o"), 0, untouched)));
    for (std::int64_t query = kToken; query < kLength; query += 1) {
      for (std::int64_t head = 0; head < 8; ++head) {
        const double value = got.at("o")[(query * 8 + head) * 128 + 77];
        ASSERT_TRUE(std::isnan(value)) << "query " << query << ", head " << head << ": " << value;
      }
    }
  }
}

}  // namespace
}  // namespace openmsa::test
