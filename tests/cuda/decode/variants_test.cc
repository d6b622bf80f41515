// Every kernel that decode may pick: by dtype, head_dim, index_dim, block_size, group size, topk and page size.
#include "cuda/decode/cases.h"
#include "cuda/support/judge.h"
#include "cuda/support/selections.h"

namespace openmsa::test {
namespace {

INSTANTIATE_TEST_SUITE_P(Shapes, DecodeShapes, testing::ValuesIn(decode_shapes()), shape_name);

TEST_P(DecodeShapes, MatchTheReference) {
  Layer layer = make_layer(GetParam().shape);
  expect_layer(layer);
  const TensorMap all = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION);
  EXPECT_TRUE(all.at("o").same_bits(run_on_device(layer, OPENMSA_OP_MSA_ATTENTION, {"o"}).at("o"))) << "o alone";
  EXPECT_TRUE(all.at("topk_indices").same_bits(run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices")));

  // Unsorted, some of the blocks later than the query, rows with few blocks or none.
  layer.add({{"topk_indices", random_selection(layer, 3)}});
  const TensorMap got = run_on_device(layer, OPENMSA_OP_SPARSE_ATTENTION);
  expect_close(layer, got, judged(layer, OPENMSA_OP_SPARSE_ATTENTION));
  EXPECT_TRUE(got.at("o").same_bits(run_on_device(layer, OPENMSA_OP_SPARSE_ATTENTION, {"o"}).at("o"))) << "o alone";
}

class DecodeVariants : public OnHopperWith<openmsa_dtype> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, DecodeVariants, testing::Values(OPENMSA_BFLOAT16, OPENMSA_FLOAT16),
                         [](const auto& info) { return info.param == OPENMSA_BFLOAT16 ? "bf16" : "fp16"; });

TEST_P(DecodeVariants, AttentionOfEveryGroupAndBlockSize) {
  for (const std::int32_t group_size : {1, 2, 4, 8, 16}) {
    for (const std::int32_t head_dim : {64, 128}) {
      for (const std::int32_t block_size : {64, 128}) {
        SCOPED_TRACE(testing::Message() << "group " << group_size << ", d " << head_dim << ", block " << block_size);
        Layer layer = make_layer({.dtype = GetParam(),
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
    Layer layer = make_layer({.dtype = GetParam(),
                              .num_heads_kv = 1,
                              .index_dim = index_dim,
                              .seqlens_q = {16, 1, 5},
                              .seqlens_k = {2000, 9000, 4300}});
    for (const std::int32_t block_size : {64, 128}) {
      for (const std::int32_t topk : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64}) {
        SCOPED_TRACE(testing::Message() << "index_dim " << index_dim << ", block " << block_size << ", topk " << topk);
        layer.shape.block_size = layer.config.block_size = block_size;
        layer.shape.topk = layer.config.topk = topk;
        expect_selection(layer, run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"), OPENMSA_BACKEND_CPU);
      }
    }
  }
}

TEST_P(DecodeVariants, ForcedBlocksAreNeverTakenTwice) {
  Layer layer =
      make_layer({.dtype = GetParam(), .block_size = 64, .seqlens_q = {16, 1, 2, 1}, .seqlens_k = {580, 1300, 64, 3}});
  for (const std::int32_t num_local_blocks : {0, 1, 2, 3, 5}) {
    for (const std::int32_t num_init_blocks : {0, 1, 2, 3, 5}) {
      for (const std::int32_t topk : {1, 3, 8, 20}) {
        SCOPED_TRACE(testing::Message() << num_local_blocks << " local, " << num_init_blocks << " init, " << topk);
        layer.config.num_local_blocks = num_local_blocks;
        layer.config.num_init_blocks = num_init_blocks;
        layer.shape.topk = layer.config.topk = topk;
        expect_selection(layer, run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"));
      }
    }
  }
}

TEST_P(DecodeVariants, OrderAndSizeOfPagesDoNotMatter) {
  for (const std::int32_t block_size : {64, 128}) {
    const Layer contiguous = make_layer({.dtype = GetParam(),
                                         .num_heads_q = 8,
                                         .head_dim = 128,
                                         .block_size = block_size,
                                         .topk = 4,
                                         .seqlens_q = {4, 1, 16},
                                         .seqlens_k = {150, 1610, 733}});
    const TensorMap expected = run_on_device(contiguous, OPENMSA_OP_MSA_ATTENTION);
    for (std::int32_t page_size = block_size; page_size >= 16; page_size /= 2) {
      for (const std::uint64_t page_seed : {1, 2}) {
        SCOPED_TRACE(testing::Message() << "page_size " << page_size << ", order " << page_seed);
        expect_same_bits(run_on_device(in_pages(contiguous, page_size, page_seed), OPENMSA_OP_MSA_ATTENTION), expected);
      }
    }
  }
}

}  // namespace
}  // namespace openmsa::test
