// Lists of a kv_block that are cut into several items, whose sums are added up in turns.
#include "cuda/support/device_call.h"
#include "support/compare.h"
#include "support/gradients.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

/// Every query wants the first kv_block: more of them than an item may have.
Layer hot_block() {
  Layer layer = device_layer({.dtype = OPENMSA_BFLOAT16,
                              .num_heads_q = 2,
                              .num_heads_kv = 1,
                              .head_dim = 64,
                              .index_dim = 64,
                              .block_size = 64,
                              .topk = 2,
                              .seqlens_q = {1100},
                              .seqlens_k = {1200}});
  Buffer indices = random_selection(layer, 1);
  for (std::int64_t row = 0; row < 1100; ++row) {
    indices.set({0, row, 0}, 0);
    indices.set({0, row, 1}, -1);
  }
  layer.add({{"topk_indices", indices}});
  return layer;
}

TEST(Turns, OfTheGradientOfAttention) { expect_gradients(hot_block(), OPENMSA_OP_SPARSE_ATTENTION); }

TEST(Turns, OfTheKlLoss) {
  const Layer layer = with_forward(hot_block(), OPENMSA_OP_SPARSE_ATTENTION);
  const TensorMap got = run(layer, OPENMSA_OP_KL_LOSS), expected = judged(layer, OPENMSA_OP_KL_LOSS);
  for (const auto& [name, result] : got) {
    EXPECT_LT(relative_error(result, expected.at(name)), tolerance(layer.config).gradient) << name;
  }
}

}  // namespace
}  // namespace openmsa::test
