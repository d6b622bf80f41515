// Dense attention of the CPU backend over very many keys.
#include <gtest/gtest.h>

#include "support/compare.h"

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

}  // namespace
}  // namespace openmsa::test
