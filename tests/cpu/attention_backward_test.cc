// Gradients of the main branch on the CPU backend against the float64 reference, from the same saved o and lse.
#include <gtest/gtest.h>

#include <random>

#include "support/compare.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

class AttentionBackward : public testing::TestWithParam<NamedShape> {
 protected:
  void expect_gradients_match(openmsa_op forward, openmsa_op backward) {
    const TensorMap saved = run(layer_.on(OPENMSA_BACKEND_REFERENCE), forward);
    layer_.add({{"o", saved.at("o").as(layer_.config.dtype)}, {"lse", saved.at("lse").as(OPENMSA_FLOAT32)}});
    const TensorMap got = run(layer_, backward);
    const TensorMap expected = run(layer_.on(OPENMSA_BACKEND_REFERENCE), backward);
    for (const auto& [name, gradient] : got) {
      EXPECT_LT(relative_error(gradient, expected.at(name)), tolerance(layer_.config.dtype).gradient) << name;
    }
  }

  Layer layer_ = make_layer(GetParam().shape);
};
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionBackward, testing::ValuesIn(contiguous_shapes()), shape_name);

TEST_P(AttentionBackward, SparseMatchesTheReference) {
  layer_.add(run(layer_.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_SELECT_BLOCKS));
  expect_gradients_match(OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
}

TEST_P(AttentionBackward, DenseMatchesTheReference) {
  expect_gradients_match(OPENMSA_OP_DENSE_ATTENTION, OPENMSA_OP_DENSE_ATTENTION_BACKWARD);
}

TEST_P(AttentionBackward, WithAGradientIntoLseMatchesTheReference) {
  std::mt19937_64 random(2);
  layer_.tensors["d_lse"] = random_buffer(OPENMSA_FLOAT32, {layer_.total_q(), layer_.config.num_heads_q}, random);
  expect_gradients_match(OPENMSA_OP_DENSE_ATTENTION, OPENMSA_OP_DENSE_ATTENTION_BACKWARD);
  layer_.add(run(layer_.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_SELECT_BLOCKS));
  expect_gradients_match(OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
}

}  // namespace
}  // namespace openmsa::test
