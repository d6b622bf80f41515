// The main branch of a prompt on the GPU where its schedule has much to do: many kv_blocks, hot ones, many query rows.
#include "cuda/support/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"
#include "support/selections.h"

namespace openmsa::test {
namespace {

class AttentionGroups : public OnHopperWith<std::int32_t> {};
INSTANTIATE_TEST_SUITE_P(Groups, AttentionGroups, testing::Values(1, 2, 4, 8, 16), testing::PrintToStringParamName());

TEST_P(AttentionGroups, OverManyBlocks) {
  for (const bool is_wide : {false, true}) {
    const openmsa_dtype dtype = is_wide ? OPENMSA_BFLOAT16 : OPENMSA_FLOAT16;
    Layer layer = device_layer(many_blocks(dtype, GetParam(), is_wide ? 128 : 64));
    layer.tensors["topk_indices"] = random_selection(layer, 4);
    expect_attention(layer, OPENMSA_BACKEND_CPU);
    layer.tensors["topk_indices"] = clustered_selection(layer, 4);
    expect_attention(layer, OPENMSA_BACKEND_CPU);
  }
}

/// Every query wants the same old kv_block besides its own choice: its list is shared out between many work items.
TEST_P(AttentionGroups, OverOneHotBlock) {
  Layer layer = device_layer(many_blocks(OPENMSA_BFLOAT16, GetParam(), 64));
  Buffer indices = random_selection(layer, 5);
  for (std::int64_t row = 0; row < 500; row += 3) {
    for (std::int64_t slot = 0; slot < 8; ++slot) indices.set({0, row, slot}, slot == 0 ? 7 : -1);
  }
  layer.add({{"topk_indices", indices}});
  expect_attention(layer, OPENMSA_BACKEND_CPU);
}

/// More query rows than the schedule takes at once.
class AttentionChunks : public OnHopper {
 protected:
  static LayerShape shape() {
    return {.dtype = OPENMSA_BFLOAT16,
            .num_heads_q = 1,
            .num_heads_kv = 1,
            .block_size = 64,
            .topk = 8,
            .seqlens_q = {17000, 900, 0, 6000},
            .seqlens_k = {17000, 3000, 50, 6000},
            .padding_q = 5};
  }
};

TEST_F(AttentionChunks, OverRandomAndClusteredBlocks) {
  Layer layer = device_layer(shape());
  layer.tensors["topk_indices"] = random_selection(layer, 7);
  expect_attention(layer, OPENMSA_BACKEND_CPU);
  layer.tensors["topk_indices"] = clustered_selection(layer, 7);
  expect_attention(layer, OPENMSA_BACKEND_CPU);
}

TEST_F(AttentionChunks, QueriesAtTheEndsOfSequencesMatchTheReference) {
  const Layer layer = device_layer(shape());
  const TensorMap whole = run(layer, OPENMSA_OP_MSA_ATTENTION);
  std::int64_t first_row = 0;
  for (const std::size_t b : {0, 1, 2, 3}) {
    const std::int64_t count = layer.shape.seqlens_q[b], begin = std::max<std::int64_t>(0, count - 20);
    if (count > 0) {
      SCOPED_TRACE(testing::Message() << "sequence " << b);
      Layer part = excerpt(layer, b, begin, count);
      Buffer chosen(OPENMSA_INT32, {1, count - begin, 8});
      for (std::int64_t i = 0; i < chosen.size(); ++i) {
        chosen.set(i, whole.at("topk_indices")[(first_row + begin) * 8 + i]);
      }
      expect_selection(part, chosen);
      part.add({{"topk_indices", chosen}});
      expect_close(part,
                   {{"o", rows(whole.at("o"), first_row + begin, count - begin)},
                    {"lse", rows(whole.at("lse"), first_row + begin, count - begin)}},
                   judged(part, OPENMSA_OP_SPARSE_ATTENTION));
    }
    first_row += count;
  }
}

}  // namespace
}  // namespace openmsa::test
