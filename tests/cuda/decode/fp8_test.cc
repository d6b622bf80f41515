// fp8 caches and index keys on the GPU: every kind of scale, wherever it lies.
#include <utility>

#include "cuda/decode/cases.h"
#include "cuda/support/fused_cache.h"
#include "cuda/support/judge.h"
#include "cuda/support/selections.h"
#include "pitfalls/fixture.h"

namespace openmsa::test {
namespace {

constexpr openmsa_dtype kFp8 = OPENMSA_FLOAT8_E4M3;
constexpr Scales kKinds[] = {Scales::kNone, Scales::kOne, Scales::kPerToken};

class Fp8Shapes : public OnHopperWith<NamedShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, Fp8Shapes, testing::ValuesIn(fp8_decode_shapes()), shape_name);

TEST_P(Fp8Shapes, MatchTheReference) {
  LayerShape shape = GetParam().shape;
  for (const std::int64_t queries : {1, 3, 8, 16}) {
    SCOPED_TRACE(testing::Message() << queries << " queries of each sequence");
    shape.seqlens_q.assign(shape.seqlens_k.size(), queries);
    Layer layer = make_layer(shape);
    expect_layer(layer);
    layer.add({{"topk_indices", random_selection(layer, 3)}});
    expect_attention(layer);
    if (HasFailure()) return;
  }
}

class Fp8Decode : public OnHopper {
 protected:
  static LayerShape shape(std::vector<std::int64_t> seqlens_q) {
    return {.dtype = OPENMSA_BFLOAT16,
            .num_heads_q = 8,
            .block_size = 64,
            .topk = 3,
            .page_size = 32,
            .seqlens_q = std::move(seqlens_q),
            .seqlens_k = {333, 70, 515},
            .padding_q = 2,
            .kv_dtype = kFp8,
            .index_dtype = kFp8,
            .scales = Scales::kPerToken};
  }
};

/// A prompt over fp8 caches, whose index keys are not.
TEST_F(Fp8Decode, ManyQueriesOverGivenBlocks) {
  for (const openmsa_dtype dtype : {OPENMSA_BFLOAT16, OPENMSA_FLOAT16}) {
    for (const std::int32_t head_dim : {64, 128}) {
      SCOPED_TRACE(testing::Message() << "head_dim " << head_dim << ", dtype " << dtype);
      LayerShape prompt = shape({300, 1, 40});
      prompt.dtype = dtype;
      prompt.head_dim = head_dim;
      prompt.index_dtype = {};
      Layer layer = make_layer(prompt);
      expect_layer(layer);
      for (const Buffer& indices : {random_selection(layer, 3), clustered_selection(layer, 4)}) {
        layer.tensors["topk_indices"] = indices;
        expect_attention(layer);
      }
    }
  }
}

/// k_scale and v_scale are told apart, and need not be of one kind.
TEST_F(Fp8Decode, ScalesOfKeysAndValuesMayDifferInKind) {
  const auto with_scale = [](Layer layer, const char* name, Scales scales, double value) {
    if (scales == Scales::kNone) layer.tensors.erase(name);
    if (scales == Scales::kOne) layer.tensors[name] = Buffer(OPENMSA_FLOAT32, {1}, {value});
    return layer;
  };
  for (const std::int64_t queries : {1, 4, 9}) {
    const Layer layer = make_layer(shape({queries, queries, queries}));
    for (const Scales k : kKinds) {
      for (const Scales v : kKinds) {
        SCOPED_TRACE(testing::Message() << queries << " queries, kinds " << int(k) << " and " << int(v));
        expect_layer(with_scale(with_scale(layer, "k_scale", k, 0.4), "v_scale", v, 2.7));
      }
    }
  }
}

/// Scales of sequences behind the first begin at any multiple of 4 bytes.
TEST_F(Fp8Decode, ContiguousIndexKeys) {
  for (const std::int32_t index_dim : {64, 128}) {
    for (const std::int64_t queries : {1, 8}) {
      SCOPED_TRACE(testing::Message() << "index_dim " << index_dim << ", " << queries << " queries");
      LayerShape contiguous = shape({queries, queries, queries, queries});
      contiguous.seqlens_k = {333, 1001, 2, 706};
      contiguous.index_dim = index_dim;
      contiguous.page_size = 0;
      contiguous.kv_dtype = {};
      Layer layer = make_layer(contiguous);
      expect_layer(layer);
      const TensorMap expected = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION);
      layer.tensors["index_k_scale"] = restrided(layer.tensors["index_k_scale"], {3});
      expect_same_bits(run_on_device(layer, OPENMSA_OP_MSA_ATTENTION), expected);
      contiguous.scales = Scales::kNone;
      expect_layer(make_layer(contiguous));
    }
  }
}

/// Head-major pages, gaps, scales of all heads of a token side by side, and k and v as halves of one cache.
TEST_F(Fp8Decode, StridedCachesAndScales) {
  for (const std::int64_t queries : {1, 8}) {
    const Layer packed = make_layer(shape({queries, queries, queries}));
    const TensorMap expected = run_on_device(packed, OPENMSA_OP_MSA_ATTENTION);
    Layer strided = packed;
    TensorMap& in = strided.tensors;
    in["k_cache"] = restrided(in["k_cache"], {2 * 32 * 80, 80, 32 * 80, 1});
    in["v_cache"] = restrided(in["v_cache"], {6000, 160, 80, 1});
    in["index_k_cache"] = restrided(in["index_k_cache"], {3200, 96, 1});
    in["k_scale"] = restrided(in["k_scale"], {1, 3});
    in["v_scale"] = restrided(in["v_scale"], {3 * in["v_scale"].shape()[1], 2});
    in["index_k_scale"] = restrided(in["index_k_scale"], {5});
    expect_same_bits(run_on_device(strided, OPENMSA_OP_MSA_ATTENTION), expected);

    expect_same_from_fused_caches(packed, expected);
  }
}

/// Behind a sequence's end and in pages that nobody owns, in the codes and in their scales.
TEST_F(Fp8Decode, GarbageIsNotUsed) {
  const Layer layer = make_layer(shape({1, 8, 16}));  // with NaN in all of these
  const TensorMap expected = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION);
  EXPECT_TRUE(is_finite(expected.at("o")));
  for (const auto& [code, scale] : {std::pair{448.0, kInf}, {-448.0, 1e30}, {0.0, 0.0}}) {
    Layer other = layer;
    for (const char* name : {"k_cache", "v_cache", "index_k_cache", "k_scale", "v_scale", "index_k_scale"}) {
      Buffer& buffer = other.tensors.at(name);
      for (std::int64_t i = 0; i < buffer.size(); ++i) {
        if (std::isnan(buffer[i])) buffer.set(i, buffer.dtype() == kFp8 ? code : scale);
      }
    }
    expect_same_bits(run_on_device(other, OPENMSA_OP_MSA_ATTENTION), expected);
  }
}

/// NaN in the codes or in the scales of later draft tokens.
TEST_F(Fp8Decode, LaterDraftsAreNotSeen) {
  LayerShape drafts = shape({16});
  drafts.seqlens_k = {5 * 64 + 3};
  drafts.padding_q = 0;
  const Layer clean = make_layer(drafts);
  const TensorMap expected = run_on_device(clean, OPENMSA_OP_MSA_ATTENTION);
  const Buffer& table = clean.tensors.at("block_table");
  for (const std::int64_t last : {3, 12}) {  // the last query that must not notice
    Layer codes = clean, scales = clean;
    for (std::int64_t token = 5 * 64 + 3 - 16 + last + 1; token < 5 * 64 + 3; ++token) {
      const std::int64_t slot = static_cast<std::int64_t>(table[token / 32]) * 32 + token % 32;
      for (const char* name : {"k_cache", "v_cache"}) codes.tensors.at(name).set((slot * 2 + 1) * 64 + 5, kNan);
      codes.tensors.at("index_k_cache").set(slot * 64 + 5, kNan);
      for (const char* name : {"k_scale", "v_scale"}) scales.tensors.at(name).set({1, slot}, kNan);
      scales.tensors.at("index_k_scale").set(slot, kNan);
    }
    for (const Layer& odd : {codes, scales}) {
      const TensorMap got = run_on_device(odd, OPENMSA_OP_MSA_ATTENTION);
      for (const char* name : {"o", "lse"}) {
        EXPECT_TRUE(rows(got.at(name), 0, last + 1).same_bits(rows(expected.at(name), 0, last + 1))) << name << last;
      }
      EXPECT_FALSE(is_finite(rows(got.at("o"), last + 1, 15 - last)));
    }
  }
}

}  // namespace
}  // namespace openmsa::test
