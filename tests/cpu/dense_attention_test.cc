// Dense attention of the CPU backend against the float64 reference.
#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

/// Where a quarter of a million values nearly cancel, one running sum in fp32 would be too coarse.
TEST(LongDecode, DenseAttentionLosesNoDigits) {
  const Layer layer = make_layer({.num_heads_q = 4,
                                  .num_heads_kv = 1,
                                  .head_dim = 16,
                                  .index_dim = 16,
                                  .block_size = 128,
                                  .seqlens_q = {1},
                                  .seqlens_k = {1 << 18}});
  EXPECT_LT(
      relative_error(run(layer, OPENMSA_OP_DENSE_ATTENTION).at("o"), judged(layer, OPENMSA_OP_DENSE_ATTENTION).at("o")),
      1e-6);
}

class DenseAttention : public testing::TestWithParam<NamedShape> {};
INSTANTIATE_TEST_SUITE_P(Shapes, DenseAttention, testing::ValuesIn(all_shapes()), shape_name);
INSTANTIATE_TEST_SUITE_P(Fp8Shapes, DenseAttention, testing::ValuesIn(fp8_shapes()), shape_name);

TEST_P(DenseAttention, MatchesTheReference) {
  const Layer layer = make_layer(GetParam().shape);
  expect_close(layer, run(layer, OPENMSA_OP_DENSE_ATTENTION), judged(layer, OPENMSA_OP_DENSE_ATTENTION));
}

}  // namespace
}  // namespace openmsa::test
