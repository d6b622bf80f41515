// fp8 caches and index keys on the GPU: every kind of scale, wherever it lies.
#include <utility>

#include "cuda/decode/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/fused_cache.h"
#include "cuda/support/hopper.h"
#include "pitfalls/fixture.h"
#include "support/compare.h"
#include "support/selections.h"

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
    Layer layer = device_layer(shape);
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

/// k_scale and v_scale are told apart, and need not be of one kind.
TEST_F(Fp8Decode, ScalesOfKeysAndValuesMayDifferInKind) {
  const auto with_scale = [](Layer layer, const char* name, Scales scales, double value) {
    if (scales == Scales::kNone) layer.tensors.erase(name);
    if (scales == Scales::kOne) layer.tensors[name] = Buffer(OPENMSA_FLOAT32, {1}, {value});
    return layer;
  };
  for (const std::int64_t queries : {1, 4, 9}) {
    const Layer layer = device_layer(shape({queries, queries, queries}));
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
      Layer layer = device_layer(contiguous);
      expect_layer(layer);
      const TensorMap expected = run(layer, OPENMSA_OP_MSA_ATTENTION);
      layer.tensors["index_k_scale"] = restrided(layer.tensors["index_k_scale"], {3});
      expect_same_bits(run(layer, OPENMSA_OP_MSA_ATTENTION), expected);
      contiguous.scales = Scales::kNone;
      expect_layer(device_layer(contiguous));
    }
  }
}

}  // namespace
}  // namespace openmsa::test
