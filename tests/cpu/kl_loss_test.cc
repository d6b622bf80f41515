// The loss of the index branch and its gradients on the CPU backend against the float64 reference.
#include <gtest/gtest.h>

#include <cmath>

#include "support/compare.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

class KlLoss : public testing::TestWithParam<NamedShape> {
 protected:
  void expect_match(openmsa_op forward) {
    const Layer reference = layer_.on(OPENMSA_BACKEND_REFERENCE);
    layer_.add({{"lse", run(reference, forward).at("lse").as(OPENMSA_FLOAT32)}});
    const std::vector<std::string> outputs = {"kl_loss", "d_index_q", "d_index_k", "d_q", "d_k"};
    const TensorMap got = run(layer_, OPENMSA_OP_KL_LOSS, outputs);
    const TensorMap expected = run(layer_.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_KL_LOSS, outputs);
    EXPECT_LT(relative_error(got.at("kl_loss"), expected.at("kl_loss")), 1e-5);
    for (const char* name : {"d_index_q", "d_index_k", "d_q", "d_k"}) {
      EXPECT_LT(relative_error(got.at(name), expected.at(name)), tolerance(layer_.config.dtype).gradient) << name;
    }
    // Each output is the same whether or not others are asked for.
    for (const std::string& name : outputs) {
      EXPECT_TRUE(run(layer_, OPENMSA_OP_KL_LOSS, {name}).at(name).same_bits(got.at(name))) << name;
    }
  }

  Layer layer_ = make_layer(GetParam().shape);
};
INSTANTIATE_TEST_SUITE_P(Shapes, KlLoss, testing::ValuesIn(contiguous_shapes()), shape_name);

TEST_P(KlLoss, OverTheSelectionMatchesTheReference) {
  layer_.add(run(layer_.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_SELECT_BLOCKS));
  expect_match(OPENMSA_OP_SPARSE_ATTENTION);
}

TEST_P(KlLoss, OverTheWholeHistoryMatchesTheReference) { expect_match(OPENMSA_OP_DENSE_ATTENTION); }

TEST_P(KlLoss, WithWeightsMatchesTheReference) {
  Buffer weights(OPENMSA_FLOAT32, {layer_.total_q()});
  for (std::int64_t row = 0; row < weights.size(); ++row) weights.set(row, row % 3 * 0.25);
  layer_.tensors["kl_weights"] = weights;
  expect_match(OPENMSA_OP_DENSE_ATTENTION);
}

}  // namespace
}  // namespace openmsa::test
