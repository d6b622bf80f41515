// The main branch on the GPU, over given selections and as the whole layer. The CPU backend, which the reference judges
// in its own tests, judges where the reference would take long.
#include "cuda/support/cases.h"
#include "cuda/support/judge.h"

namespace openmsa::test {
namespace {

using Attention = HopperShapes;
INSTANTIATE_TEST_SUITE_P(Shapes, Attention, testing::ValuesIn(hopper_shapes()), shape_name);

TEST_P(Attention, OverTheReferenceSelection) {
  Layer layer = make_layer(GetParam().shape);
  layer.add(judged(layer, OPENMSA_OP_SELECT_BLOCKS));
  expect_attention(layer);
}

TEST_P(Attention, OverRandomBlocksInAnyOrder) {
  Layer layer = make_layer(GetParam().shape);
  layer.add({{"topk_indices", random_selection(layer, 3)}});
  expect_attention(layer, OPENMSA_BACKEND_CPU);
}

TEST_P(Attention, OverClusteredBlocks) {
  Layer layer = make_layer(GetParam().shape);
  layer.add({{"topk_indices", clustered_selection(layer, 3)}});
  expect_attention(layer, OPENMSA_BACKEND_CPU);
}

TEST_P(Attention, LayerIsAttentionOverItsOwnSelection) {
  Layer layer = make_layer(GetParam().shape);
  const TensorMap whole = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION);
  EXPECT_TRUE(whole.at("topk_indices").same_bits(run_on_device(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices")));
  layer.add({{"topk_indices", whole.at("topk_indices")}});
  expect_same_bits({{"o", whole.at("o")}, {"lse", whole.at("lse")}}, run_on_device(layer, OPENMSA_OP_SPARSE_ATTENTION));
  expect_close(layer, whole, judged(layer, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_BACKEND_CPU));
}

TEST_P(Attention, EqualsDenseWhenEveryBlockIsChosen) {
  LayerShape shape = GetParam().shape;
  shape.topk = 64;  // the longest sequence has 15 blocks of 64
  const Layer layer = make_layer(shape);
  expect_close(layer, run_on_device(layer, OPENMSA_OP_MSA_ATTENTION),
               judged(layer, OPENMSA_OP_DENSE_ATTENTION, OPENMSA_BACKEND_CPU));
}

TEST_P(Attention, WithoutOptionalOutputsGivesTheSameResult) {
  const Layer layer = make_layer(GetParam().shape);
  const TensorMap all = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION);
  const TensorMap only_o = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION, {"o"});
  EXPECT_TRUE(all.at("o").same_bits(only_o.at("o")));
}

/// Long enough that most pairs of query and kv_block find partners in other tiles.
LayerShape many_blocks(openmsa_dtype dtype, std::int32_t group_size, std::int32_t head_dim) {
  return {.dtype = dtype,
          .num_heads_q = 2 * group_size,
          .head_dim = head_dim,
          .block_size = 64,
          .topk = 8,
          .seqlens_q = {500, 1, 700},
          .seqlens_k = {4000, 900, 700}};
}

class AttentionGroups : public OnHopperWith<std::int32_t> {};
INSTANTIATE_TEST_SUITE_P(Groups, AttentionGroups, testing::Values(1, 2, 4, 8, 16), testing::PrintToStringParamName());

TEST_P(AttentionGroups, OverManyBlocks) {
  for (const bool is_wide : {false, true}) {
    const openmsa_dtype dtype = is_wide ? OPENMSA_BFLOAT16 : OPENMSA_FLOAT16;
    Layer layer = make_layer(many_blocks(dtype, GetParam(), is_wide ? 128 : 64));
    layer.tensors["topk_indices"] = random_selection(layer, 4);
    expect_attention(layer, OPENMSA_BACKEND_CPU);
    layer.tensors["topk_indices"] = clustered_selection(layer, 4);
    expect_attention(layer, OPENMSA_BACKEND_CPU);
  }
}

/// Every query wants the same old kv_block besides its own choice: its list is shared out between many work items.
TEST_P(AttentionGroups, OverOneHotBlock) {
  Layer layer = make_layer(many_blocks(OPENMSA_BFLOAT16, GetParam(), 64));
  Buffer indices = random_selection(layer, 5);
  for (std::int64_t row = 0; row < 500; row += 3) {
    for (std::int64_t slot = 0; slot < 8; ++slot) indices.set({0, row, slot}, slot == 0 ? 7 : -1);
  }
  layer.add({{"topk_indices", indices}});
  expect_attention(layer, OPENMSA_BACKEND_CPU);
}

class AttentionBoundaries : public OnHopperWith<std::int32_t> {};
INSTANTIATE_TEST_SUITE_P(BlockSizes, AttentionBoundaries, testing::Values(64, 128), testing::PrintToStringParamName());

TEST_P(AttentionBoundaries, LengthsNextToABlock) {
  for (const std::int32_t page_size : {0, 16, GetParam()}) {
    SCOPED_TRACE(testing::Message() << "page_size " << page_size);
    expect_layer(make_layer(boundary_shape(GetParam(), page_size)));
  }
}

/// A softmax_scale of one's own, and scores so large that only the running maximum keeps exp finite.
TEST_P(AttentionBoundaries, LargeScoresDoNotOverflow) {
  Layer layer = make_layer(
      {.dtype = OPENMSA_BFLOAT16, .block_size = GetParam(), .seqlens_q = {50}, .seqlens_k = {9 * GetParam()}});
  layer.config.softmax_scale = 40;
  layer.add({{"topk_indices", random_selection(layer, 6)}});
  const TensorMap got = run_on_device(layer, OPENMSA_OP_SPARSE_ATTENTION);
  const TensorMap expected = judged(layer, OPENMSA_OP_SPARSE_ATTENTION);
  EXPECT_LT(relative_error(got.at("o"), expected.at("o")), 5e-3);
  EXPECT_LT(absolute_error(got.at("lse"), expected.at("lse")), 1e-2);  // rounding of values near 1000 is 1e-4
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
  Layer layer = make_layer(shape());
  layer.tensors["topk_indices"] = random_selection(layer, 7);
  expect_attention(layer, OPENMSA_BACKEND_CPU);
  layer.tensors["topk_indices"] = clustered_selection(layer, 7);
  expect_attention(layer, OPENMSA_BACKEND_CPU);
}

TEST_F(AttentionChunks, QueriesAtTheEndsOfSequencesMatchTheReference) {
  const Layer layer = make_layer(shape());
  const TensorMap whole = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION);
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
