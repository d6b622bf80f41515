// Dense attention on every backend.
#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

using DenseAttention = OnBackendShape;
INSTANTIATE_TEST_SUITE_P(Shapes, DenseAttention, testing::ValuesIn(attention_shapes()), backend_shape_name);

TEST_P(DenseAttention, MatchesTheReference) {
  expect_close(layer_, run(layer_, OPENMSA_OP_DENSE_ATTENTION),
               judged(layer_, OPENMSA_OP_DENSE_ATTENTION, quick_judge(layer_)));
}

TEST_P(DenseAttention, WithoutLseGivesTheSameResult) {
  EXPECT_TRUE(run(layer_, OPENMSA_OP_DENSE_ATTENTION)
                  .at("o")
                  .same_bits(run(layer_, OPENMSA_OP_DENSE_ATTENTION, {"o"}).at("o")));
}

class DenseEdges : public OnBackend {
 protected:
  void expect_dense(const LayerShape& shape) const {
    const Layer dense = layer(shape);
    expect_close(dense, run(dense, OPENMSA_OP_DENSE_ATTENTION),
                 judged(dense, OPENMSA_OP_DENSE_ATTENTION, quick_judge(dense)));
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, DenseEdges, testing::ValuesIn(judged_backends()), backend_test_name);

/// Around the boundaries of 64 and 128 keys, as prompts, chunks and decode steps.
TEST_P(DenseEdges, LengthsNextToATile) {
  const std::vector<std::int64_t> lengths = {0, 1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257};
  for (const std::int32_t page_size : {0, 16}) {
    for (const std::int64_t queries : {1, 5, 40}) {
      SCOPED_TRACE(testing::Message() << queries << " queries, page_size " << page_size);
      LayerShape shape{.page_size = page_size, .seqlens_q = {}, .seqlens_k = lengths, .padding_q = 1};
      for (const std::int64_t length : lengths) shape.seqlens_q.push_back(std::min(length, queries));
      expect_dense(shape);
      shape.seqlens_q = lengths;
      expect_dense(shape);
    }
  }
}

/// The first queries of such sequences stand at negative positions and see nothing.
TEST_P(DenseEdges, MoreQueriesThanKeys) {
  expect_dense({.num_heads_q = 8, .seqlens_q = {5, 16, 1, 3, 16}, .seqlens_k = {3, 1, 0, 2, 15}});
  expect_dense({.num_heads_q = 8, .seqlens_q = {50, 300, 1, 129}, .seqlens_k = {3, 140, 0, 128}});
}

/// Scores near 1000, whose rounding in fp32 is 1e-4.
class DenseScores : public DenseEdges {
 protected:
  static void expect_near(const Layer& layer) {
    const TensorMap got = run(layer, OPENMSA_OP_DENSE_ATTENTION), expected = judged(layer, OPENMSA_OP_DENSE_ATTENTION);
    EXPECT_LT(relative_error(got.at("o"), expected.at("o")), std::max(1e-3, tolerance(layer.config).o));
    EXPECT_LT(absolute_error(got.at("lse"), expected.at("lse")), 1e-2);
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, DenseScores, testing::ValuesIn(judged_backends()), backend_test_name);

TEST_P(DenseScores, SoLargeThatOnlyTheRunningMaximumKeepsExpFinite) {
  for (const std::int64_t queries : {50, 3}) {
    Layer large = layer({.seqlens_q = {queries}, .seqlens_k = {1200}});
    large.config.softmax_scale = 40;
    expect_near(large);
  }
}

/// From key to key, and from the last key to the first, by far more in all than the softmax takes in one step.
TEST_P(DenseScores, ThatGrowAllTheWay) {
  constexpr std::int64_t kKeys = 900;
  for (const std::int64_t queries : {70, 2}) {
    for (const bool ascends : {false, true}) {
      Layer ramp = layer({.seqlens_q = {queries}, .seqlens_k = {kKeys}});
      Buffer& k = ramp.tensors.at("k");
      ramp.tensors.at("q").fill(1);
      const std::int64_t row = k.size() / kKeys;
      for (std::int64_t i = 0; i < k.size(); ++i) {
        const std::int64_t key = i / row;
        k.set(i, 0.125 * static_cast<double>(ascends ? key : kKeys - key));
      }
      expect_near(ramp);
    }
  }
}

}  // namespace
}  // namespace openmsa::test
