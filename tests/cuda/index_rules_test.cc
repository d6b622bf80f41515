// How index queries meet index keys in e4m3, and what scales these have, in the kernels of prompts, of decode steps and
// of mixtures.
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "pitfalls/fixture.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

class IndexRules : public OnHopperWith<openmsa_dtype> {
 protected:
  static LayerShape shape(openmsa_index_q_rounding rounding, Scales scales) {
    return {.dtype = GetParam(),
            .num_heads_q = 8,
            .block_size = 64,
            .topk = 3,
            .page_size = 32,
            .seqlens_q = {1, 1, 1},
            .seqlens_k = {1001, 706, 377},
            .padding_q = 2,
            .index_dtype = OPENMSA_FLOAT8_E4M3,
            .scales = scales,
            .index_q_rounding = rounding};
  }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, IndexRules, testing::Values(OPENMSA_BFLOAT16, OPENMSA_FLOAT16));

constexpr openmsa_index_q_rounding kRoundings[] = {OPENMSA_INDEX_Q_SCALED, OPENMSA_INDEX_Q_CAST, OPENMSA_INDEX_Q_EXACT};

TEST_P(IndexRules, WholeLayersMatchTheReference) {
  for (const auto rounding : kRoundings) {
    for (const Scales scales : {Scales::kNone, Scales::kOne, Scales::kPerToken, Scales::kPerBlock}) {
      for (const std::int32_t index_dim : {64, 128}) {
        for (const std::int32_t block_size : {64, 128}) {
          for (const std::vector<std::int64_t>& queries :
               {std::vector<std::int64_t>{1, 1, 1}, {4, 4, 4}, {16, 9, 13}, {300, 33, 77}, {1, 300, 5}}) {
            SCOPED_TRACE(testing::Message()
                         << "rounding " << rounding << ", scales " << int(scales) << ", index_dim " << index_dim
                         << ", blocks of " << block_size << ", " << queries[0] << ", " << queries[1] << " queries");
            LayerShape layer = shape(rounding, scales);
            layer.index_dim = index_dim;
            layer.block_size = block_size;
            layer.seqlens_q = queries;
            expect_layer(device_layer(layer));
            if (HasFailure()) return;
          }
        }
      }
    }
  }
}

/// Long lists have kernels of their own, and one sequence and many of a decode step.
TEST_P(IndexRules, OfLongListsAndManySequences) {
  for (const auto rounding : kRoundings) {
    for (const Scales scales : {Scales::kPerToken, Scales::kPerBlock}) {
      SCOPED_TRACE(testing::Message() << "rounding " << rounding << ", scales " << int(scales));
      LayerShape layer = shape(rounding, scales);
      layer.topk = 40;
      layer.seqlens_k = {4000, 3333, 77};
      expect_layer(device_layer(layer));
      layer.seqlens_q = {200, 1, 70};
      expect_layer(device_layer(layer));
      layer = shape(rounding, scales);
      layer.seqlens_q = {1};
      layer.seqlens_k = {20000};
      expect_layer(device_layer(layer));
      layer.seqlens_q.assign(40, 1);
      layer.seqlens_k.assign(40, 300);
      expect_layer(device_layer(layer));
      if (HasFailure()) return;
    }
  }
}

/// Scales of pages may lie apart.
TEST_P(IndexRules, ScalesOfBlocksMayLieApart) {
  for (const std::vector<std::int64_t>& queries : {std::vector<std::int64_t>{1, 1, 1}, {300, 33, 77}}) {
    LayerShape of_blocks = shape(OPENMSA_INDEX_Q_CAST, Scales::kPerBlock);
    of_blocks.seqlens_q = queries;
    Layer layer = device_layer(of_blocks);
    const TensorMap expected = run(layer, OPENMSA_OP_SELECT_BLOCKS);
    layer.tensors["index_k_scale"] = restrided(layer.tensors["index_k_scale"], {3});
    expect_same_bits(run(layer, OPENMSA_OP_SELECT_BLOCKS), expected);
  }
}

/// In every kernel.
TEST_P(IndexRules, QueriesThatComeInFp8AreThoseThatWouldBeCast) {
  for (const std::vector<std::int64_t>& queries : {std::vector<std::int64_t>{1, 1, 1}, {4, 4, 4}, {300, 33, 77}}) {
    LayerShape cast = shape(OPENMSA_INDEX_Q_CAST, Scales::kPerBlock);
    cast.seqlens_q = queries;
    const Layer in_16_bits = device_layer(cast);
    Layer in_fp8 = in_16_bits;
    in_fp8.tensors["index_q"] = in_16_bits.tensors.at("index_q").as(OPENMSA_FLOAT8_E4M3);
    expect_same_bits(run(in_fp8, OPENMSA_OP_MSA_ATTENTION), run(in_16_bits, OPENMSA_OP_MSA_ATTENTION));
  }
}

}  // namespace
}  // namespace openmsa::test
