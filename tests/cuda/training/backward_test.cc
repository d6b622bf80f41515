// Gradients of attention on the GPU where there is much to do: many kv_blocks, lists of several items, several list
// batches; and numbers at the ends of their ranges.
#include <cmath>

#include "cuda/support/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"
#include "support/gradients.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

/// On the host's CPU backend, which the reference judges: these layers are too large for it.
void expect_quickly_judged(const Layer& layer, openmsa_op forward) {
  expect_gradients(layer, forward, OPENMSA_BACKEND_CPU);
}

LayerShape many_blocks(openmsa_dtype dtype, std::int32_t group_size, std::int32_t head_dim, std::int32_t block_size) {
  return {.dtype = dtype,
          .num_heads_q = 2 * group_size,
          .head_dim = head_dim,
          .block_size = block_size,
          .topk = 8,
          .seqlens_q = {500, 1, 700},
          .seqlens_k = {4000, 900, 700},
          .padding_q = 3};
}

class BackwardGroups : public OnHopperWith<std::int32_t> {};
INSTANTIATE_TEST_SUITE_P(Groups, BackwardGroups, testing::Values(1, 2, 4, 8, 16), testing::PrintToStringParamName());

TEST_P(BackwardGroups, OverManyBlocks) {
  for (const std::int32_t head_dim : {64, 128}) {
    for (const std::int32_t block_size : {64, 128}) {
      SCOPED_TRACE(testing::Message() << "head_dim " << head_dim << ", block_size " << block_size);
      const openmsa_dtype dtype = head_dim == block_size ? OPENMSA_BFLOAT16 : OPENMSA_FLOAT16;
      Layer layer = device_layer(many_blocks(dtype, GetParam(), head_dim, block_size));
      expect_quickly_judged(layer, OPENMSA_OP_DENSE_ATTENTION);
      for (const Buffer& indices : {random_selection(layer, 4), clustered_selection(layer, 4)}) {
        layer.tensors["topk_indices"] = indices;
        expect_quickly_judged(layer, OPENMSA_OP_SPARSE_ATTENTION);
      }
    }
  }
}

/// Every query wants the same old kv_block: its list is cut into several items.
TEST_P(BackwardGroups, OverOneHotBlock) {
  LayerShape shape = many_blocks(OPENMSA_BFLOAT16, GetParam(), 128, 128);
  shape.seqlens_q = {1700, 1, 700};
  Layer layer = device_layer(shape);
  Buffer indices = random_selection(layer, 5);
  for (std::int64_t row = 0; row < 1700; ++row) {
    for (std::int64_t slot = 0; slot < 8; ++slot) indices.set({0, row, slot}, slot == 0 ? 7 : -1);
  }
  layer.add({{"topk_indices", indices}});
  expect_quickly_judged(layer, OPENMSA_OP_SPARSE_ATTENTION);
}

/// A kv_block that a query names twice counts once.
TEST_P(BackwardGroups, KvBlocksThatAreNamedTwice) {
  Layer layer = device_layer(many_blocks(OPENMSA_BFLOAT16, GetParam(), 64, 64));
  Buffer once = random_selection(layer, 6), twice = once;
  for (std::int64_t r = 0; r < 2; ++r) {
    for (std::int64_t row = 0; row < layer.total_q(); ++row) {
      for (std::int64_t slot = 4; slot < 8; ++slot) {
        once.set({r, row, slot}, -1);
        twice.set({r, row, slot}, twice.at({r, row, slot - 4}));
      }
    }
  }
  layer.tensors["topk_indices"] = once;
  layer = with_forward(layer, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_BACKEND_CPU);
  const TensorMap expected = run(layer, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
  layer.tensors["topk_indices"] = twice;
  expect_same_bits(run(layer, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD), expected);
}

class Backward : public OnHopper {
 protected:
  static Layer layer(const LayerShape& shape) {
    Layer layer = device_layer(shape);
    layer.tensors["topk_indices"] = random_selection(layer, 7);
    return layer;
  }
  static LayerShape one_prompt() {
    return {.dtype = OPENMSA_BFLOAT16,
            .num_heads_q = 8,
            .head_dim = 128,
            .block_size = 64,
            .topk = 6,
            .seqlens_q = {700},
            .seqlens_k = {900}};
  }
};

/// More query rows than a list batch takes, of one head and of several.
TEST_F(Backward, InSeveralListBatches) {
  LayerShape shape{.dtype = OPENMSA_BFLOAT16,
                   .num_heads_q = 1,
                   .num_heads_kv = 1,
                   .block_size = 64,
                   .topk = 2,
                   .seqlens_q = {60000, 900, 0, 6000},
                   .seqlens_k = {60000, 3000, 50, 6000},
                   .padding_q = 5};
  expect_quickly_judged(layer(shape), OPENMSA_OP_SPARSE_ATTENTION);
  shape.num_heads_q = shape.num_heads_kv = 8;
  shape.seqlens_q = {9000, 11000};
  shape.seqlens_k = {9000, 12000};
  expect_quickly_judged(layer(shape), OPENMSA_OP_SPARSE_ATTENTION);
}

TEST_F(Backward, TakesOInFp32) {
  Layer rounded = with_forward(layer(one_prompt()), OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_BACKEND_CPU);
  Layer wide = rounded;
  wide.tensors["o"] = rounded.tensors.at("o").as(OPENMSA_FLOAT32);
  expect_same_bits(run(wide, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD), run(rounded, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD));
}

/// Scores near 1000: probabilities of 0 and 1.
TEST_F(Backward, OfLargeScores) {
  Layer large = layer(one_prompt());
  large.config.softmax_scale = 40;
  expect_quickly_judged(large, OPENMSA_OP_SPARSE_ATTENTION);
  expect_quickly_judged(large, OPENMSA_OP_DENSE_ATTENTION);
}

/// d_q is summed in fixed point, with a unit that follows d_o.
TEST_F(Backward, OfGradientsOfAnySize) {
  const Layer plain = with_forward(layer(one_prompt()), OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_BACKEND_CPU);
  for (const double size : {0x1p-60, 0x1p-30, 0x1p30, 0x1p60}) {
    SCOPED_TRACE(size);
    Layer scaled = plain;
    std::vector<double> values = scaled.tensors.at("d_o").values();
    for (double& value : values) value *= size;
    scaled.tensors.at("d_o").assign(values);
    const TensorMap expected = judged(scaled, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, OPENMSA_BACKEND_CPU);
    for (const auto& [name, gradient] : run(scaled, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD)) {
      EXPECT_LT(relative_error(gradient, expected.at(name)), tolerance(scaled.config).gradient) << name;
    }
  }
}

/// d_o of 0 gives gradients of 0.
TEST_F(Backward, OfNothingIsZero) {
  Layer none = with_forward(layer(one_prompt()), OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_BACKEND_CPU);
  none.tensors.at("d_o").fill(0);
  for (const auto& [name, gradient] : run(none, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD)) {
    for (const double value : gradient.values()) ASSERT_EQ(value, 0) << name;
  }
}

/// A few keys far larger than all others leave room for d_q in fixed point.
TEST_F(Backward, WithOutliersAmongKeysAndValues) {
  Layer outliers = layer(one_prompt());
  std::mt19937_64 random(3);
  for (const auto& [name, factor] : {std::pair{"k", 8.0}, std::pair{"v", 50.0}}) {
    Buffer& keys = outliers.tensors.at(name);
    for (int i = 0; i < 5; ++i) {
      const auto at = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(keys.size()));
      keys.set(at, keys[at] * factor);
    }
  }
  expect_quickly_judged(outliers, OPENMSA_OP_SPARSE_ATTENTION);
}

}  // namespace
}  // namespace openmsa::test
