// The KL loss; a backward of strided tensors. Gradients of attention are in gradients_test.cc.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "pitfalls/fixture.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

class TrainingPitfalls : public OnBackend {
 protected:
  bool is_cuda() const { return GetParam().id == OPENMSA_BACKEND_CUDA; }
  /// In the shape's own dtype where the backend serves it.
  Layer layer(LayerShape shape) const {
    shape.block_size = block();
    if (is_cuda()) shape.dtype = GetParam().dtype;
    return make_layer(shape).on(GetParam().id);
  }
  /// Of loss and gradients of about 1 that need no rounding of 16 bits; exponentials on the GPU are approximate.
  double precision() const { return is_cuda() ? 1e-5 : 1e-6; }
  /// All that the backend writes.
  std::vector<std::string> outputs() const {
    std::vector<std::string> names = {"kl_loss", "d_index_q", "d_index_k"};
    if (!is_cuda()) names.insert(names.end(), {"d_q", "d_k"});
    return names;
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, TrainingPitfalls, testing::ValuesIn(backends()), backend_test_name);

/// A layer with the tensors of its forward pass, ready for every backward.
Layer with_forward(Layer layer) { return layer.add(run(layer, OPENMSA_OP_MSA_ATTENTION)); }

/// Pitfall 20: rows with a single key.
TEST_P(TrainingPitfalls, KlOfASingleVisibleKeyIsZero) {
  Layer single = with_forward(layer({.seqlens_q = {1, 1}, .seqlens_k = {1, 1}}));
  const TensorMap out = run(single, OPENMSA_OP_KL_LOSS);
  EXPECT_NEAR(out.at("kl_loss")[0], 0, precision());
  for (const char* name : {"d_index_q", "d_index_k"}) {
    for (const double value : out.at(name).values()) EXPECT_NEAR(value, 0, precision()) << name;
  }
}

/// Pitfall 20: a teacher that averages logits, and logarithms to another base. Two heads with probabilities (1/2, 1/2)
/// and (1/10, 9/10) over two tokens: P = (3/10, 7/10), or nearly where log 9 is rounded. The index branch cannot tell them
/// apart: P_idx = (1/2, 1/2).
TEST_P(TrainingPitfalls, TheTeacherIsAMeanOfProbabilities) {
  Layer two = layer({.num_heads_q = 2, .num_heads_kv = 1, .seqlens_q = {1}, .seqlens_k = {2}});
  two.config.softmax_scale = 1;
  for (const char* name : {"q", "k", "index_q"}) two.tensors.at(name).fill(0);
  two.tensors.at("q").set({0, 1, 0}, 1);
  two.tensors.at("k").set({1, 0, 0}, std::log(9.0));
  two = with_forward(two);
  const double p = (0.5 + 1 / (1 + std::exp(two.tensors.at("k").at({1, 0, 0})))) / 2;
  const double expected = p * std::log(p / 0.5) + (1 - p) * std::log((1 - p) / 0.5);
  // On CUDA the teacher passes through 16 bits.
  const double allowed = two.config.backend == OPENMSA_BACKEND_CUDA ? 2e-3 * expected : precision();
  EXPECT_NEAR(run(two, OPENMSA_OP_KL_LOSS).at("kl_loss")[0], expected, allowed);
}

/// Pitfall 20: a log-sum-exp over all tokens instead of the selected ones.
TEST_P(TrainingPitfalls, KlSumsOverTheSelectedTokensAlone) {
  // Keys outside the selection may be anything.
  const std::int64_t keys = 3 * block() + 4;
  Layer sparse = layer({.topk = 1, .seqlens_q = {10}, .seqlens_k = {keys}});
  Buffer indices(OPENMSA_INT32, {2, 10, 1});
  indices.fill(1);
  sparse.add({{"topk_indices", indices}});
  sparse.add(run(sparse, OPENMSA_OP_SPARSE_ATTENTION));
  const TensorMap expected = run(sparse, OPENMSA_OP_KL_LOSS);
  for (const char* name : {"k", "index_k"}) {
    fill_rows(sparse.tensors.at(name), 0, block(), kNan);
    fill_rows(sparse.tensors.at(name), 2 * block(), keys, 1e30);
  }
  expect_same_bits(run(sparse, OPENMSA_OP_KL_LOSS), expected);
}

/// Tokens that do not count (padding, prompts) may hold anything: 0 times NaN would be NaN.
TEST_P(TrainingPitfalls, RowsOfWeightZeroGiveExactlyNothing) {
  Layer weighted = with_forward(layer({.seqlens_q = {40, 9}, .seqlens_k = {40, 120}}));
  Buffer& weights = weighted.tensors["kl_weights"] = Buffer(OPENMSA_FLOAT32, {49});
  weights.fill(0.25);
  fill_rows(weights, 10, 20, 0);
  for (const bool is_sparse : {true, false}) {
    if (!is_sparse) weighted.tensors.erase("topk_indices");
    const TensorMap expected = run(weighted, OPENMSA_OP_KL_LOSS, outputs());
    Layer spoiled = weighted;
    for (const char* name : {"q", "lse", "index_q"}) fill_rows(spoiled.tensors.at(name), 10, 20, kNan);
    const TensorMap got = run(spoiled, OPENMSA_OP_KL_LOSS, outputs());
    expect_same_bits(got, expected);
    fill_rows(spoiled.tensors.at("kl_weights"), 10, 20, 0.25);
    fill_rows(spoiled.tensors.at("lse"), 10, 20, -kInf);  // these saw nothing
    expect_same_bits(run(spoiled, OPENMSA_OP_KL_LOSS, outputs()), expected);
    EXPECT_TRUE(is_zero(rows(got.at("d_index_q"), 10, 10)));
    EXPECT_TRUE(is_cuda() || is_zero(rows(got.at("d_q"), 10, 10)));
    EXPECT_FALSE(is_zero(rows(got.at("d_index_q"), 20, 10)));
  }
}

/// Micro-batches and ranks: parts of a batch with the weights of the whole.
TEST_P(TrainingPitfalls, WeightedLossesOfPartsAddUpToThatOfTheWhole) {
  Layer whole = with_forward(layer({.seqlens_q = {40, 9}, .seqlens_k = {40, 120}}));
  const TensorMap expected = run(whole, OPENMSA_OP_KL_LOSS);
  double sum = 0;
  std::int64_t first = 0;
  for (std::size_t b = 0; b < 2; ++b) {
    const std::int64_t length = whole.shape.seqlens_q[b];
    Layer part = with_forward(excerpt(whole, b, 0, length).on(GetParam().id));
    part.tensors["kl_weights"] = Buffer(OPENMSA_FLOAT32, {length});
    part.tensors["kl_weights"].fill(1 / (49.0 * 2));
    const TensorMap got = run(part, OPENMSA_OP_KL_LOSS);
    sum += got.at("kl_loss")[0];
    EXPECT_LT(relative_error(got.at("d_index_q"), rows(expected.at("d_index_q"), first, length)),
              is_cuda() ? tolerance(whole.config).gradient : 1e-6);
    first += length;
  }
  EXPECT_NEAR(sum, expected.at("kl_loss")[0], is_cuda() ? 1e-4 : 1e-6);  // lse may come from other kernels there
}

/// Pitfall 18: a fully masked row.
TEST_P(TrainingPitfalls, KlOfFullyMaskedRowsIsFiniteInBf16) {
  // Five of the eight queries stand before the first key.
  Layer masked = with_forward(layer({.dtype = OPENMSA_BFLOAT16, .seqlens_q = {8}, .seqlens_k = {3}}));
  masked.tensors.at("lse") = masked.tensors.at("lse").as(OPENMSA_FLOAT32);
  for (const auto& [name, result] : run(masked, OPENMSA_OP_KL_LOSS)) EXPECT_TRUE(is_finite(result)) << name;
}

/// Pitfall 19: gradients of kv_blocks with no owner, one, and many.
TEST_P(TrainingPitfalls, KlGivesIndexKeysThatNobodyChoseExactZeros) {
  const std::int64_t keys = 6 * block() + 8;
  Layer owned = layer({.topk = 2, .seqlens_q = {20}, .seqlens_k = {keys}});
  owned.add({{"topk_indices", owned_blocks(20)}});
  owned.add(run(owned, OPENMSA_OP_SPARSE_ATTENTION));
  const Buffer d_index_k = run(owned, OPENMSA_OP_KL_LOSS).at("d_index_k");
  for (std::int64_t b = 0; b < 7; ++b) {
    const Buffer of_block = rows(d_index_k, b * block(), std::min<std::int64_t>(block(), keys - b * block()));
    EXPECT_EQ(is_zero(of_block), b != 1 && b != 4) << "kv_block " << b;
  }
}

/// Pitfall 12: strides.
TEST_P(TrainingPitfalls, StridedKlAndRecall) {
  Layer packed = layer({.seqlens_q = {40, 9}, .seqlens_k = {40, 120}});
  packed.add(run(packed, OPENMSA_OP_MSA_ATTENTION));
  std::mt19937_64 random(2);
  packed.tensors["kl_weights"] = random_buffer(OPENMSA_FLOAT32, {49}, random);
  Layer strided = packed;
  TensorMap& in = strided.tensors;
  in["q"] = restrided(in["q"], {704, 80, 1});  // of 16 bytes, which the GPU wants
  in["k"] = restrided(in["k"], {72, 160 * 72, 1});
  in["index_q"] = restrided(in["index_q"], {208, 104, 1});
  in["index_k"] = restrided(in["index_k"], {80, 1});
  in["lse"] = restrided(in["lse"], {1, 60});
  in["kl_weights"] = restrided(in["kl_weights"], {3});
  in["topk_indices"] = restrided(in["topk_indices"], {1, 11, 2});
  for (const openmsa_op op : {OPENMSA_OP_KL_LOSS, OPENMSA_OP_BLOCK_RECALL}) {
    SCOPED_TRACE(op);
    const TensorMap expected = run(packed, op);
    TensorMap out = with_gaps(expected, 3);
    run_into(strided, op, out);
    for (const auto& [name, result] : out) EXPECT_EQ(result.values(), expected.at(name).values()) << name;
  }
}

}  // namespace
}  // namespace openmsa::test
