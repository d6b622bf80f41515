// fp8 index keys on the GPU under many queries per sequence: whole layers, scales that lie apart, signs.
#include "cuda/support/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "pitfalls/fixture.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

class Fp8IndexLayer : public OnHopperWith<openmsa_dtype> {
 protected:
  static LayerShape shape(std::int32_t page_size) {
    return {.dtype = GetParam(),
            .num_heads_q = 8,
            .index_dim = 64,
            .block_size = 64,
            .topk = 3,
            .page_size = page_size,
            .seqlens_q = {300, 33, 77},
            .seqlens_k = {1001, 706, 77},
            .padding_q = 2,
            .index_dtype = OPENMSA_FLOAT8_E4M3,
            .scales = Scales::kPerToken};
  }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, Fp8IndexLayer, testing::Values(OPENMSA_BFLOAT16, OPENMSA_FLOAT16));

TEST_P(Fp8IndexLayer, WholeLayersMatchTheReference) {
  for (const std::int32_t page_size : {0, 16, 64}) {
    for (const bool has_fp8_kv : {false, true}) {
      if (page_size == 0 && has_fp8_kv) continue;
      SCOPED_TRACE(testing::Message() << "pages of " << page_size << (has_fp8_kv ? ", k and v in fp8" : ""));
      LayerShape layer = shape(page_size);
      if (has_fp8_kv) layer.kv_dtype = OPENMSA_FLOAT8_E4M3;
      expect_layer(device_layer(layer));
    }
  }
}

/// Scales of sequences behind the first begin at any multiple of 4 bytes, and may lie apart.
TEST_P(Fp8IndexLayer, ScalesMayLieApart) {
  for (const std::int32_t page_size : {0, 32}) {
    Layer layer = device_layer(shape(page_size));
    const TensorMap expected = run(layer, OPENMSA_OP_SELECT_BLOCKS);
    layer.tensors["index_k_scale"] = restrided(layer.tensors["index_k_scale"], {3});
    expect_same_bits(run(layer, OPENMSA_OP_SELECT_BLOCKS), expected);
  }
}

/// kv_blocks of negative scores alone, of zeros of both signs, of NaN: their maxima are found by comparing integers.
TEST_P(Fp8IndexLayer, ScoresOfAnySign) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const openmsa_dtype index_dtype : {OPENMSA_FLOAT8_E4M3, GetParam()}) {
    LayerShape signs = shape(0);
    signs.index_dtype = index_dtype;
    signs.scales = Scales::kNone;
    Layer layer = device_layer(signs);
    layer.tensors.at("index_q").fill(1);
    Buffer& keys = layer.tensors.at("index_k");
    keys.fill(0);
    std::mt19937_64 random(11);
    for (std::int64_t token = 0; token < keys.shape()[0]; ++token) {
      const auto level = static_cast<double>(random() % 4);
      const double of_kind[] = {level - 1, -1 - level, random() % 2 == 0 ? 0.0 : -0.0, nan};
      keys.set({token, 1}, random() % 40 == 0 ? nan : of_kind[token / 64 % 4]);
    }
    expect_same_bits(run(layer, OPENMSA_OP_SELECT_BLOCKS), judged(layer, OPENMSA_OP_SELECT_BLOCKS));
  }
}

}  // namespace
}  // namespace openmsa::test
