// Block recall on the GPU over prompts of many tiles.
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

constexpr openmsa_op kRecall = OPENMSA_OP_BLOCK_RECALL;

class RecallGroups : public OnHopperWith<std::int32_t> {
 protected:
  static Layer long_prompts(openmsa_dtype dtype, std::int32_t head_dim, std::int32_t block_size) {
    Layer layer = device_layer({.dtype = dtype,
                                .num_heads_q = 2 * GetParam(),
                                .head_dim = head_dim,
                                .block_size = block_size,
                                .topk = 8,
                                .seqlens_q = {150, 1, 0, 300},
                                .seqlens_k = {2000, 900, 50, 300},
                                .padding_q = 3});
    return layer.add({{"topk_indices", clustered_selection(layer, 4)}});
  }
};
INSTANTIATE_TEST_SUITE_P(Groups, RecallGroups, testing::Values(1, 2, 4, 8, 16), testing::PrintToStringParamName());

TEST_P(RecallGroups, OverManyBlocks) {
  for (const openmsa_dtype dtype : {OPENMSA_BFLOAT16, OPENMSA_FLOAT16}) {
    for (const std::int32_t head_dim : {64, 128}) {
      for (const std::int32_t block_size : {64, 128}) {
        SCOPED_TRACE(testing::Message() << "head_dim " << head_dim << ", block_size " << block_size);
        const Layer layer = long_prompts(dtype, head_dim, block_size);
        const TensorMap got = run(layer, kRecall), expected = run_on_host(layer.on(OPENMSA_BACKEND_CPU), kRecall);
        EXPECT_LT(absolute_error(got.at("score_recall"), expected.at("score_recall")), 1e-4);
        // A pair of masses that only rounding tells apart may change places: one kv_block of one row.
        EXPECT_LE(absolute_error(got.at("block_recall"), expected.at("block_recall")), 1.0 / 8 + 1e-6);
        EXPECT_LT(relative_error(got.at("block_recall"), expected.at("block_recall")), 5e-3);
      }
    }
  }
}

TEST_P(RecallGroups, TwentyRunsAreEqual) {
  const Layer layer = long_prompts(OPENMSA_BFLOAT16, 64, 64);
  const TensorMap first = run(layer, kRecall);
  for (int repeat = 1; repeat < 20; ++repeat) expect_same_bits(run(layer, kRecall), first);
}

}  // namespace
}  // namespace openmsa::test
