// The loss of the index branch and its gradients on the GPU: against float64, exact where it must be, on streams and in
// graphs.
#include <cmath>

#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "cuda/training/busy_layer.h"
#include "pitfalls/fixture.h"
#include "support/compare.h"
#include "support/gradients.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

const std::vector<std::string> kOutputs = {"kl_loss", "d_index_q", "d_index_k"};

/// Ready for a KL loss over random selections, or over the whole history.
Layer ready(Layer layer, bool is_dense, openmsa_backend judge = OPENMSA_BACKEND_CPU) {
  if (!is_dense) layer.add({{"topk_indices", random_selection(layer, 3)}});
  return with_forward(layer, forward_of(is_dense), judge);
}

/// Loss and gradients lie within the tolerance of those that `judge` gives.
void expect_kl(const Layer& layer, openmsa_backend judge = OPENMSA_BACKEND_REFERENCE) {
  const TensorMap got = run(layer, OPENMSA_OP_KL_LOSS, kOutputs);
  const TensorMap expected = judged(layer, OPENMSA_OP_KL_LOSS, judge, kOutputs);
  EXPECT_LT(relative_error(got.at("kl_loss"), expected.at("kl_loss")), 1e-4);
  for (const char* name : {"d_index_q", "d_index_k"}) {
    EXPECT_LT(relative_error(got.at(name), expected.at(name)), tolerance(layer.config).gradient) << name;
  }
}

class DeviceKlPitfalls : public OnHopper {
 protected:
  static LayerShape small() {
    return {.dtype = OPENMSA_BFLOAT16,
            .num_heads_q = 8,
            .head_dim = 64,
            .index_dim = 128,
            .block_size = 64,
            .topk = 3,
            .seqlens_q = {100, 70},
            .seqlens_k = {300, 70}};
  }
};

TEST_F(DeviceKlPitfalls, LogitsOfAThousandMatchTheReference) {
  for (const bool is_dense : {false, true}) {
    Layer layer = device_layer(small());
    for (const char* name : {"q", "index_q"}) {
      Buffer& rows = layer.tensors.at(name);
      for (std::int64_t i = 0; i < rows.size(); ++i) rows.set(i, rows[i] * 300);
    }
    expect_kl(ready(layer, is_dense, OPENMSA_BACKEND_REFERENCE));
  }
}

/// Rows that see nothing, or chose nothing, give nothing.
TEST_F(DeviceKlPitfalls, EmptyRowsStayZero) {
  Layer layer =
      device_layer({.dtype = OPENMSA_BFLOAT16, .block_size = 64, .topk = 2, .seqlens_q = {80}, .seqlens_k = {70}});
  Buffer indices = random_selection(layer, 1);
  for (std::int64_t slot = 0; slot < 2; ++slot) indices.set({0, 40, slot}, -1);
  layer.add({{"topk_indices", indices}});
  layer = with_forward(layer, OPENMSA_OP_SPARSE_ATTENTION);
  expect_kl(layer);
  const Buffer d_index_q = run(layer, OPENMSA_OP_KL_LOSS).at("d_index_q");
  EXPECT_TRUE(is_zero(rows(d_index_q, 0, 10)));
  for (std::int64_t c = 0; c < 64; ++c) EXPECT_EQ(d_index_q.at({40, 0, c}), 0);
}

/// Block 1 has one owner, block 4 all queries, the others none.
TEST_F(DeviceKlPitfalls, KeysThatNobodyChoseGetExactZeros) {
  Layer layer =
      device_layer({.dtype = OPENMSA_FLOAT16, .block_size = 64, .topk = 2, .seqlens_q = {30}, .seqlens_k = {350}});
  Buffer indices(OPENMSA_INT32, {2, 30, 2});
  indices.fill(-1);
  for (std::int64_t r = 0; r < 2; ++r) {
    for (std::int64_t t = 0; t < 30; ++t) indices.set({r, t, 0}, 4);
    indices.set({r, 7, 1}, 1);
  }
  layer.add({{"topk_indices", indices}});
  layer = with_forward(layer, OPENMSA_OP_SPARSE_ATTENTION);
  expect_kl(layer);
  const Buffer d_index_k = run(layer, OPENMSA_OP_KL_LOSS).at("d_index_k");
  for (std::int64_t b = 0; b < 6; ++b) {
    const Buffer block = rows(d_index_k, b * 64, std::min<std::int64_t>(64, 350 - b * 64));
    EXPECT_EQ(is_zero(block), b != 1 && b != 4) << "kv_block " << b;
  }
}

/// Keys that nobody sees may be anything, as large as bf16 has them.
TEST_F(DeviceKlPitfalls, KeysOutsideTheSelectionDoNotMatter) {
  Layer layer =
      device_layer({.dtype = OPENMSA_BFLOAT16, .block_size = 64, .topk = 1, .seqlens_q = {10}, .seqlens_k = {200}});
  Buffer indices(OPENMSA_INT32, {2, 10, 1});
  indices.fill(1);
  layer.add({{"topk_indices", indices}});
  layer = with_forward(layer, OPENMSA_OP_SPARSE_ATTENTION);
  const TensorMap expected = run(layer, OPENMSA_OP_KL_LOSS);
  for (const char* name : {"k", "index_k"}) {
    fill_rows(layer.tensors.at(name), 0, 64, kNan);
    fill_rows(layer.tensors.at(name), 128, 200, 1e30);
  }
  expect_same_bits(run(layer, OPENMSA_OP_KL_LOSS), expected);
}

/// A query with a NaN, in the middle of a kv_block: the others' gradients, and those of keys that it does not see, stay
/// what they are. With weight 0 it changes nothing at all.
TEST_F(DeviceKlPitfalls, ANanStaysWithItsOwnQuery) {
  for (const bool is_dense : {false, true}) {
    for (const char* poisoned : {"q", "index_q"}) {
      SCOPED_TRACE(testing::Message() << poisoned << (is_dense ? " history" : " selection"));
      constexpr std::int64_t kRow = 120;  // position 20 of the second sequence
      Layer clean = device_layer(small());
      if (!is_dense) {
        Buffer indices = random_selection(clean, 3);
        for (std::int64_t r = 0; r < 2; ++r) {
          for (std::int64_t slot = 0; slot < 3; ++slot) indices.set({r, kRow, slot}, slot == 0 ? 0 : -1);
        }
        clean.add({{"topk_indices", indices}});
      }
      clean = with_forward(clean, forward_of(is_dense), OPENMSA_BACKEND_CPU);
      Buffer weights(OPENMSA_FLOAT32, {170});
      weights.fill(0.5);
      clean.add({{"kl_weights", weights}});
      Layer with_nan = clean;
      fill_rows(with_nan.tensors.at(poisoned), kRow, kRow + 1, kNan);
      if (std::string(poisoned) == "q") fill_rows(with_nan.tensors.at("lse"), kRow, kRow + 1, kNan);
      const TensorMap expected = run(clean, OPENMSA_OP_KL_LOSS);
      const TensorMap got = run(with_nan, OPENMSA_OP_KL_LOSS);
      EXPECT_TRUE(std::isnan(got.at("kl_loss")[0]));
      for (const auto& [name, unseen] : {std::pair{"d_index_q", kRow + 1}, {"d_index_k", 300 + 21}}) {
        const std::int64_t first = std::string(name) == "d_index_q" ? kRow : 300;
        EXPECT_TRUE(rows(got.at(name), 0, first).same_bits(rows(expected.at(name), 0, first))) << name;
        const std::int64_t rest = got.at(name).shape()[0] - unseen;
        EXPECT_TRUE(rows(got.at(name), unseen, rest).same_bits(rows(expected.at(name), unseen, rest))) << name;
        EXPECT_TRUE(std::isnan(rows(got.at(name), first, 1)[0])) << name;
      }
      weights.set(kRow, 0);
      clean.tensors["kl_weights"] = weights;
      with_nan.tensors["kl_weights"] = weights;
      expect_same_bits(run(with_nan, OPENMSA_OP_KL_LOSS), run(clean, OPENMSA_OP_KL_LOSS));
    }
  }
}

/// A key with a NaN: queries before it in the same kv_block do not see it.
TEST_F(DeviceKlPitfalls, ANanInAKeyStaysWithTheQueriesThatSeeIt) {
  const Layer clean = ready(device_layer(small()), true);
  Layer with_nan = clean;
  fill_rows(with_nan.tensors.at("index_k"), 300 + 40, 300 + 41, kNan);
  const Buffer expected = run(clean, OPENMSA_OP_KL_LOSS).at("d_index_q");
  const Buffer got = run(with_nan, OPENMSA_OP_KL_LOSS).at("d_index_q");
  EXPECT_TRUE(rows(got, 100, 40).same_bits(rows(expected, 100, 40)));
  for (std::int64_t row = 140; row < 170; ++row) EXPECT_TRUE(std::isnan(got.at({row, 0, 0}))) << row;
}

TEST_F(DeviceKlPitfalls, StridesDoNotMatter) {
  const Layer packed = ready(device_layer(small()), false);
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  in["q"] = restrided(in["q"], {8 * 72 + 16, 72, 1});
  in["k"] = restrided(in["k"], {72, 400 * 72, 1});
  in["index_q"] = restrided(in["index_q"], {280, 136, 1});
  in["index_k"] = restrided(in["index_k"], {144, 1});
  in["lse"] = restrided(in["lse"], {1, 180});
  in["topk_indices"] = restrided(in["topk_indices"], {1, 11, 2});
  const TensorMap expected = run(packed, OPENMSA_OP_KL_LOSS);
  TensorMap out = expected;
  for (auto& [name, result] : out) {
    Shape strides(result.shape().size(), 1);
    for (std::size_t d = strides.size(); d-- > 1;) strides[d - 1] = strides[d] * result.shape()[d] + 3;
    result = Buffer::strided(result.dtype(), result.shape(), strides);
  }
  run_into(strided, OPENMSA_OP_KL_LOSS, out);
  for (const auto& [name, result] : out) EXPECT_EQ(result.values(), expected.at(name).values()) << name;
}

TEST_F(DeviceKlPitfalls, GradientsOfTheTeacherAreRefused) {
  const Layer layer = ready(device_layer(small()), false);
  for (const std::string name : {"d_q", "d_k"}) {
    try {
      run(layer, OPENMSA_OP_KL_LOSS, {name});
      ADD_FAILURE() << name << " was not refused";
    } catch (const Error& error) {
      EXPECT_EQ(error.status(), OPENMSA_UNSUPPORTED);
      EXPECT_EQ(std::string(error.what()), name +
                                               ": expected none on the CUDA backend, whose openmsa_kl_loss has no "
                                               "gradients of the teacher");
    }
  }
}

struct KlCase {
  LayerShape shape;
  bool is_dense;
};

/// Every group size, head_dim, index_dim and block_size, with sequences without queries, without keys and with tails of
/// one key.
std::vector<KlCase> kl_cases() {
  std::vector<KlCase> result;
  int number = 0;
  for (const std::int32_t group_size : {1, 2, 4, 8, 16}) {
    for (const auto& [head_dim, index_dim] : {std::pair{64, 64}, {64, 128}, {128, 64}, {128, 128}}) {
      for (const bool is_dense : {false, true}) {
        LayerShape shape{.dtype = number % 2 == 0 ? OPENMSA_BFLOAT16 : OPENMSA_FLOAT16,
                         .num_heads_q = 2 * group_size,
                         .head_dim = head_dim,
                         .index_dim = index_dim,
                         .block_size = number / 2 % 2 == 0 ? 64 : 128,
                         .topk = 3,
                         .seqlens_q = {70, 1, 0, 4, 2, 33, 129, 1},
                         .seqlens_k = {70, 400, 20, 333, 0, 297, 129, 1}};
        shape.padding_q = 3;
        result.push_back({shape, is_dense});
        ++number;
      }
      ++number;
    }
  }
  return result;
}

class DeviceKl : public OnHopperWith<KlCase> {};
INSTANTIATE_TEST_SUITE_P(Shapes, DeviceKl, testing::ValuesIn(kl_cases()), [](const auto& info) {
  const LayerShape& shape = info.param.shape;
  return std::string(shape.dtype == OPENMSA_BFLOAT16 ? "bf16" : "fp16") + "_group" +
         std::to_string(shape.num_heads_q / shape.num_heads_kv) + "_d" + std::to_string(shape.head_dim) + "_i" +
         std::to_string(shape.index_dim) + "_block" + std::to_string(shape.block_size) +
         (info.param.is_dense ? "_history" : "_selection");
});

TEST_P(DeviceKl, MatchesTheReference) { expect_kl(ready(device_layer(GetParam().shape), GetParam().is_dense)); }

/// Weights of both signs, of very different sizes, and zeros.
TEST_P(DeviceKl, OfWeightedRowsMatchesTheReference) {
  Layer layer = ready(device_layer(GetParam().shape), GetParam().is_dense);
  Buffer weights(OPENMSA_FLOAT32, {layer.total_q()});
  for (std::int64_t i = 0; i < weights.size(); ++i) {
    weights.set(i, i % 5 == 0 ? 0 : i % 3 == 0 ? -0.25 : std::ldexp(1, -static_cast<int>(i % 7)));
  }
  expect_kl(layer.add({{"kl_weights", weights}}));
}

class DeviceKlBits : public OnHopper {};

TEST_F(DeviceKlBits, LargeCallsMatchTheCpu) {
  for (const std::int32_t group_size : {2, 8, 16}) {
    for (const bool is_dense : {false, true}) {
      SCOPED_TRACE(testing::Message() << "group_size " << group_size << (is_dense ? " history" : " selection"));
      expect_kl(hot_layer(busy_shape(group_size), is_dense), OPENMSA_BACKEND_CPU);
    }
  }
}

TEST_F(DeviceKlBits, TwentyRunsAreEqual) {
  for (const bool is_dense : {false, true}) expect_equal_runs(hot_layer(busy_shape(), is_dense), OPENMSA_OP_KL_LOSS);
}

TEST_F(DeviceKlBits, EachOutputIsTheSameWithoutTheOthers) {
  const Layer layer = hot_layer(busy_shape(), false);
  const TensorMap all = run(layer, OPENMSA_OP_KL_LOSS, kOutputs);
  for (const std::string& name : kOutputs) {
    EXPECT_TRUE(run(layer, OPENMSA_OP_KL_LOSS, {name}).at(name).same_bits(all.at(name))) << name;
  }
}

TEST_F(DeviceKlBits, TwoStreamsDoNotDisturbEachOther) {
  expect_undisturbed({hot_layer(busy_shape(), false, 1), hot_layer(busy_shape(), true, 2)}, OPENMSA_OP_KL_LOSS);
}

TEST_F(DeviceKlBits, AReplayedGraphEqualsAFreshRun) {
  expect_replays(hot_layer(busy_shape(), false, 1), hot_layer(busy_shape_reordered(), false, 2), OPENMSA_OP_KL_LOSS);
}

}  // namespace
}  // namespace openmsa::test
