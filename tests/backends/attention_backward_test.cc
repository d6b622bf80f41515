// Gradients of the main branch on every backend, from the same saved o and lse as their judge's.
#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/gradients.h"
#include "support/selections.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

using AttentionBackward = OnBackendShape;
INSTANTIATE_TEST_SUITE_P(Shapes, AttentionBackward, testing::ValuesIn(gradient_shapes()), backend_shape_name);

TEST_P(AttentionBackward, OverTheReferenceSelection) {
  layer_.add(judged(layer_, OPENMSA_OP_SELECT_BLOCKS));
  expect_gradients(layer_, OPENMSA_OP_SPARSE_ATTENTION);
}

/// Unsorted, some of the blocks later than the query, rows with few blocks or none.
TEST_P(AttentionBackward, OverRandomBlocksInAnyOrder) {
  layer_.add({{"topk_indices", random_selection(layer_, 3)}});
  expect_gradients(layer_, OPENMSA_OP_SPARSE_ATTENTION, quick_judge(layer_));
}

TEST_P(AttentionBackward, OfDenseAttention) { expect_gradients(layer_, OPENMSA_OP_DENSE_ATTENTION); }

TEST_P(AttentionBackward, WithAGradientIntoLse) {
  std::mt19937_64 random(2);
  layer_.tensors["d_lse"] = random_buffer(OPENMSA_FLOAT32, {layer_.total_q(), layer_.config.num_heads_q}, random);
  expect_gradients(layer_, OPENMSA_OP_DENSE_ATTENTION, quick_judge(layer_));
  layer_.add({{"topk_indices", random_selection(layer_, 4)}});
  expect_gradients(layer_, OPENMSA_OP_SPARSE_ATTENTION, quick_judge(layer_));
}

/// In fp32 the gradients are those in the plan's dtype before they are rounded.
TEST_P(AttentionBackward, InFp32) {
  layer_.add({{"topk_indices", random_selection(layer_, 5)}});
  layer_ = with_forward(layer_, OPENMSA_OP_SPARSE_ATTENTION, quick_judge(layer_));
  const TensorMap rounded = run(layer_, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD);
  TensorMap wide;
  for (const auto& [name, gradient] : rounded) wide[name] = Buffer(OPENMSA_FLOAT32, gradient.shape());
  run_into(layer_, OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, wide);
  for (const auto& [name, gradient] : rounded) {
    EXPECT_TRUE(wide.at(name).as(gradient.dtype()).same_bits(gradient)) << name;
  }
}

}  // namespace
}  // namespace openmsa::test
