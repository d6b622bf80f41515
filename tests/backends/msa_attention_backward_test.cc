// The gradient of the sparse layer in one call, on every backend: what the two operations it stands for give.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "pitfalls/fixture.h"
#include "support/compare.h"
#include "support/gradients.h"
#include "support/selections.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

constexpr openmsa_op kForward = OPENMSA_OP_SPARSE_ATTENTION;
constexpr openmsa_op kBackward = OPENMSA_OP_MSA_ATTENTION_BACKWARD;
const std::vector<std::string> kOfKl = {"kl_loss", "d_index_q", "d_index_k"};

TensorMap joined(TensorMap of_attention, TensorMap of_kl) {
  of_attention.merge(of_kl);
  return of_attention;
}

/// Those of the layer's own backend.
TensorMap two_calls(const Layer& layer) {
  return joined(run(layer, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD), run(layer, OPENMSA_OP_KL_LOSS, kOfKl));
}

TensorMap judged_two_calls(const Layer& layer, openmsa_backend judge) {
  return joined(judged(layer, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, judge),
                judged(layer, OPENMSA_OP_KL_LOSS, judge, kOfKl));
}

void expect_within_tolerance(const Layer& layer, const TensorMap& got, const TensorMap& expected) {
  ASSERT_EQ(got.size(), expected.size());
  const bool is_cuda = layer.config.backend == OPENMSA_BACKEND_CUDA;
  for (const auto& [name, result] : got) {
    // A GPU rounds the teacher's probabilities to 16 bits.
    const double allowed = name != "kl_loss" ? tolerance(layer.config).gradient : is_cuda ? 2e-3 : 1e-5;
    EXPECT_LT(relative_error(result, expected.at(name)), allowed) << name;
  }
}

/// A GPU may compute both together, in another order.
void expect_those_of_two_calls(const Layer& layer, const TensorMap& got) {
  if (layer.config.backend == OPENMSA_BACKEND_CUDA) return expect_within_tolerance(layer, got, two_calls(layer));
  ASSERT_EQ(got.size(), 6u);
  expect_same_bits(got, two_calls(layer));
}

/// The results are those of the two calls, here and on `judge`.
void expect_gradients_and_loss(const Layer& layer, openmsa_backend judge = OPENMSA_BACKEND_REFERENCE) {
  const Layer saved = with_forward(layer, kForward, judge);
  const TensorMap got = run(saved, kBackward);
  expect_those_of_two_calls(saved, got);
  expect_within_tolerance(saved, got, judged_two_calls(saved, judge));
}

/// Of both signs, but no sum of differences, and a third of them 0.
Buffer some_weights(std::int64_t total_q) {
  constexpr double kWeights[] = {-0.25, 0, 1};
  Buffer weights(OPENMSA_FLOAT32, {total_q});
  for (std::int64_t row = 0; row < total_q; ++row) weights.set(row, kWeights[row % 3]);
  return weights;
}

using MsaAttentionBackward = OnBackendShape;
INSTANTIATE_TEST_SUITE_P(Shapes, MsaAttentionBackward, testing::ValuesIn(gradient_shapes()), backend_shape_name);

TEST_P(MsaAttentionBackward, OverTheReferenceSelection) {
  layer_.add(judged(layer_, OPENMSA_OP_SELECT_BLOCKS));
  expect_gradients_and_loss(layer_);
}

/// Unsorted, some of the blocks later than the query, rows with few blocks or none.
TEST_P(MsaAttentionBackward, OverRandomBlocksInAnyOrder) {
  layer_.add({{"topk_indices", random_selection(layer_, 3)}});
  expect_gradients_and_loss(layer_, quick_judge(layer_));
}

TEST_P(MsaAttentionBackward, WithWeightsAndAGradientIntoLse) {
  std::mt19937_64 random(2);
  layer_.add({{"topk_indices", random_selection(layer_, 4)}});
  layer_.tensors["kl_weights"] = some_weights(layer_.total_q());
  expect_gradients_and_loss(layer_, quick_judge(layer_));
  layer_.tensors["d_lse"] = random_buffer(OPENMSA_FLOAT32, {layer_.total_q(), layer_.config.num_heads_q}, random);
  expect_gradients_and_loss(layer_, quick_judge(layer_));
}

/// Each result of the KL loss is the same whether or not the others are asked for, and those in fp32 are the ones in the
/// plan's dtype before they are rounded.
TEST_P(MsaAttentionBackward, WhatIsWrittenDoesNotDependOnTheOtherOutputs) {
  layer_.add({{"topk_indices", random_selection(layer_, 5)}});
  layer_ = with_forward(layer_, kForward, quick_judge(layer_));
  const TensorMap all = run(layer_, kBackward);
  for (const std::string& name : kOfKl) {
    const TensorMap some = run(layer_, kBackward, {"d_q", "d_k", "d_v", name});
    ASSERT_EQ(some.size(), 4u);
    for (const auto& [written, result] : some) {
      EXPECT_TRUE(result.same_bits(all.at(written))) << written << " beside " << name;
    }
  }
  TensorMap wide;
  for (const auto& [name, result] : all) wide[name] = Buffer(OPENMSA_FLOAT32, result.shape());
  run_into(layer_, kBackward, wide);
  for (const auto& [name, result] : all) {
    EXPECT_TRUE(wide.at(name).as(result.dtype()).same_bits(result)) << name;
  }
}

class MsaAttentionBackwardPitfalls : public OnBackend {
 protected:
  /// 20 queries that share kv_block 4; query 7 alone has kv_block 1.
  Layer owned() const {
    Layer result = layer({.topk = 2, .seqlens_q = {20}, .seqlens_k = {6 * block() + 8}});
    result.add({{"topk_indices", owned_blocks(20)}});
    return result.add(run(result, kForward));
  }
  Layer chosen(const LayerShape& shape) const {
    Layer result = layer(shape);
    return result.add(run(result, OPENMSA_OP_MSA_ATTENTION));
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, MsaAttentionBackwardPitfalls, testing::ValuesIn(backends()), backend_test_name);

TEST_P(MsaAttentionBackwardPitfalls, IsTheTwoCalls) {
  Layer ragged = chosen({.num_heads_q = 8, .seqlens_q = {70, 1, 0, 9}, .seqlens_k = {70, 300, 20, 120}});
  expect_those_of_two_calls(ragged, run(ragged, kBackward));
  ragged.tensors["kl_weights"] = some_weights(ragged.total_q());
  expect_those_of_two_calls(ragged, run(ragged, kBackward));
}

/// What is not finite in a query stays with that query and the keys that it sees; and what one half of the call reads
/// alone stays in that half.
TEST_P(MsaAttentionBackwardPitfalls, ANanStaysWithItsOwnQuery) {
  const Layer clean = owned();
  const TensorMap expected = run(clean, kBackward);
  for (const std::string spoiled : {"q", "lse", "d_o", "o", "index_q"}) {
    SCOPED_TRACE(spoiled);
    Layer with_nan = clean;
    fill_rows(with_nan.tensors.at(spoiled), 7, 8, kNan);
    const TensorMap got = run(with_nan, kBackward);
    for (const char* name : {"d_q", "d_index_q"}) {
      EXPECT_TRUE(rows(got.at(name), 0, 7).same_bits(rows(expected.at(name), 0, 7))) << name;
      EXPECT_TRUE(rows(got.at(name), 8, 12).same_bits(rows(expected.at(name), 8, 12))) << name;
    }
    for (const char* name : {"d_k", "d_v", "d_index_k"}) {
      for (const std::int64_t b : {0, 2, 3, 5, 6}) {
        EXPECT_TRUE(is_zero(rows(got.at(name), b * block(), b < 6 ? block() : 8))) << name << " of kv_block " << b;
      }
    }
    const bool is_of_attention = spoiled == "d_o" || spoiled == "o", is_of_kl = spoiled == "index_q";
    for (const auto& [name, result] : got) {
      const bool is_result_of_kl = std::find(kOfKl.begin(), kOfKl.end(), name) != kOfKl.end();
      if (is_result_of_kl ? is_of_attention : is_of_kl) {
        EXPECT_TRUE(result.same_bits(expected.at(name))) << name;
      }
    }
    EXPECT_NE(is_finite(got.at(is_of_kl ? "d_index_q" : "d_q")) && is_finite(got.at("kl_loss")),
              is_of_kl || is_of_attention || GetParam().id != OPENMSA_BACKEND_CPU);  // whose exponential of NaN is 0
  }
}

/// Tokens that do not count (padding, prompts) may hold anything in the index branch: 0 times NaN would be NaN. In the
/// main branch they are tokens like others.
TEST_P(MsaAttentionBackwardPitfalls, RowsOfWeightZeroGiveNothingToTheLossAndAllToAttention) {
  Layer weighted = chosen({.seqlens_q = {40, 9}, .seqlens_k = {40, 120}});
  const TensorMap unweighted = run(weighted, kBackward);
  Buffer& weights = weighted.tensors["kl_weights"] = Buffer(OPENMSA_FLOAT32, {49});
  weights.fill(0.25);
  fill_rows(weights, 10, 20, 0);
  const TensorMap expected = run(weighted, kBackward);
  for (const char* name : {"d_q", "d_k", "d_v"}) {
    EXPECT_TRUE(expected.at(name).same_bits(unweighted.at(name))) << name;
  }
  EXPECT_TRUE(is_zero(rows(expected.at("d_index_q"), 10, 10)));
  EXPECT_FALSE(is_zero(rows(expected.at("d_index_q"), 20, 10)));
  EXPECT_FALSE(is_zero(rows(expected.at("d_q"), 10, 10)));

  Layer spoiled = weighted;
  fill_rows(spoiled.tensors.at("index_q"), 10, 20, kNan);
  expect_same_bits(run(spoiled, kBackward), expected);
  fill_rows(spoiled.tensors.at("q"), 10, 20, kNan);
  const TensorMap got = run(spoiled, kBackward);
  for (const std::string& name : kOfKl) EXPECT_TRUE(got.at(name).same_bits(expected.at(name))) << name;

  fill_rows(weighted.tensors.at("kl_weights"), 0, 49, 0);
  const TensorMap none = run(weighted, kBackward);
  for (const std::string& name : kOfKl) EXPECT_TRUE(is_zero(none.at(name))) << name;
  for (const char* name : {"d_q", "d_k", "d_v"}) EXPECT_TRUE(none.at(name).same_bits(unweighted.at(name))) << name;
}

/// Five of eight queries stand before the first key, and another one chose nothing. A loss that uses lse has no number
/// for a gradient into an lse of -inf.
TEST_P(MsaAttentionBackwardPitfalls, RowsThatSeeNothingGiveNothing) {
  Layer masked = layer({.topk = 2, .seqlens_q = {8}, .seqlens_k = {3}});
  masked.add(run(masked, OPENMSA_OP_SELECT_BLOCKS));
  for (std::int64_t r = 0; r < 2; ++r) masked.tensors.at("topk_indices").set({r, 6, 0}, -1);
  masked.add(run(masked, kForward));
  Buffer& d_lse = masked.tensors["d_lse"] = Buffer(OPENMSA_FLOAT32, {8, 4});
  d_lse.fill(0.5);
  fill_rows(d_lse, 0, 5, kNan);
  fill_rows(d_lse, 6, 7, kNan);
  const TensorMap got = run(masked, kBackward);
  for (const auto& [name, result] : got) EXPECT_TRUE(is_finite(result)) << name;
  for (const char* name : {"d_q", "d_index_q"}) {
    EXPECT_TRUE(is_zero(rows(got.at(name), 0, 5))) << name;
    EXPECT_TRUE(is_zero(rows(got.at(name), 6, 1))) << name;
    EXPECT_FALSE(is_zero(rows(got.at(name), 7, 1))) << name;
  }
}

TEST_P(MsaAttentionBackwardPitfalls, WithoutQueriesEveryKeyGetsZero) {
  Layer empty = layer({.seqlens_q = {0}, .seqlens_k = {70}});
  empty.add({{"topk_indices", Buffer(OPENMSA_INT32, {2, 0, 4})},
             {"o", Buffer(empty.config.dtype, {0, 4, 64})},
             {"lse", Buffer(OPENMSA_FLOAT32, {0, 4})}});
  for (const auto& [name, result] : run(empty, kBackward)) EXPECT_TRUE(is_zero(result)) << name;
}

/// Keys outside the selection may be anything.
TEST_P(MsaAttentionBackwardPitfalls, KeysOutsideTheSelectionDoNotMatterAndGetExactZeros) {
  const Layer clean = owned();
  const TensorMap expected = run(clean, kBackward);
  Layer spoiled = clean;
  for (const char* name : {"k", "v", "index_k"}) {
    fill_rows(spoiled.tensors.at(name), 0, block(), kNan);
    fill_rows(spoiled.tensors.at(name), 2 * block(), 4 * block(), 1e30);
    fill_rows(spoiled.tensors.at(name), 5 * block(), 6 * block() + 8, kInf);
  }
  expect_same_bits(run(spoiled, kBackward), expected);
  for (const char* name : {"d_k", "d_v", "d_index_k"}) {
    for (std::int64_t b = 0; b < 7; ++b) {
      const Buffer of_block = rows(expected.at(name), b * block(), b < 6 ? block() : 8);
      EXPECT_EQ(is_zero(of_block), b != 1 && b != 4) << name << " of kv_block " << b;
    }
  }
}

/// Strides with which the rows of inputs stay aligned to 16 bytes.
TEST_P(MsaAttentionBackwardPitfalls, Strided) {
  Layer packed = chosen({.seqlens_q = {40, 9}, .seqlens_k = {40, 120}});
  std::mt19937_64 random(2);
  packed.tensors["d_lse"] = random_buffer(OPENMSA_FLOAT32, {49, 4}, random);
  packed.tensors["kl_weights"] = random_buffer(OPENMSA_FLOAT32, {49}, random);
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  for (const char* name : {"q", "o", "d_o"}) in[name] = restrided(in[name], {704, 80, 1});
  for (const char* name : {"k", "v"}) in[name] = restrided(in[name], {72, 160 * 72, 1});
  in["index_q"] = restrided(in["index_q"], {208, 104, 1});
  in["index_k"] = restrided(in["index_k"], {80, 1});
  for (const char* name : {"lse", "d_lse"}) in[name] = restrided(in[name], {1, 60});
  in["kl_weights"] = restrided(in["kl_weights"], {3});
  in["topk_indices"] = restrided(in["topk_indices"], {1, 11, 2});
  const TensorMap expected = run(packed, kBackward);
  TensorMap out = with_gaps(expected, 3);
  run_into(strided, kBackward, out);
  for (const auto& [name, result] : out) EXPECT_EQ(result.values(), expected.at(name).values()) << name;
}

}  // namespace
}  // namespace openmsa::test
