// Every kernel that decode may pick: by dtype, head_dim, index_dim, block_size, group size, topk and page size.
#include "cuda/decode/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

class DecodeVariants : public OnHopperWith<openmsa_dtype> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, DecodeVariants, testing::Values(OPENMSA_BFLOAT16, OPENMSA_FLOAT16),
                         [](const auto& info) { return info.param == OPENMSA_BFLOAT16 ? "bf16" : "fp16"; });

TEST_P(DecodeVariants, AttentionOfEveryGroupAndBlockSize) {
  for (const std::int32_t group_size : {1, 2, 4, 8, 16}) {
    for (const std::int32_t head_dim : {64, 128}) {
      for (const std::int32_t block_size : {64, 128}) {
        SCOPED_TRACE(testing::Message() << "group " << group_size << ", d " << head_dim << ", block " << block_size);
        Layer layer = device_layer({.dtype = GetParam(),
                                    .num_heads_q = 2 * group_size,
                                    .head_dim = head_dim,
                                    .block_size = block_size,
                                    .topk = 5,
                                    .seqlens_q = {1, 16, 3},
                                    .seqlens_k = {129, 700, 1281}});
        layer.add({{"topk_indices", random_selection(layer, 4)}});
        expect_attention(layer);
      }
    }
  }
}

TEST_P(DecodeVariants, SelectionOfEveryTopkAndBlockSize) {
  for (const std::int32_t index_dim : {64, 128}) {
    Layer layer = device_layer({.dtype = GetParam(),
                                .num_heads_kv = 1,
                                .index_dim = index_dim,
                                .seqlens_q = {16, 1, 5},
                                .seqlens_k = {2000, 9000, 4300}});
    for (const std::int32_t block_size : {64, 128}) {
      for (const std::int32_t topk : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64}) {
        SCOPED_TRACE(testing::Message() << "index_dim " << index_dim << ", block " << block_size << ", topk " << topk);
        layer.shape.block_size = layer.config.block_size = block_size;
        layer.shape.topk = layer.config.topk = topk;
        expect_selection(layer, run(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"), OPENMSA_BACKEND_CPU);
      }
    }
  }
}

}  // namespace
}  // namespace openmsa::test
