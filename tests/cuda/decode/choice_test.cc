// The choice among the scores of a row: up to 8192 kv_blocks, at every number of them that is read in another way, with
// scores that are equal, in order or no numbers, and kv_blocks that are forced.
#include <bit>

#include "cuda/decode/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "pitfalls/fixture.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

constexpr std::int64_t kBlock = 64, kBlocks = 8200;

enum class Scores { kRandom, kLevels, kEqual, kRising, kFalling, kOdd };

class DecodeChoice : public OnHopperWith<Scores> {
 protected:
  /// kBlocks kv_blocks, whose scores are exact in every order of summation.
  static Layer memory(std::int64_t total_q) {
    Layer memory = device_layer({.dtype = OPENMSA_BFLOAT16,
                                 .num_heads_q = 2,
                                 .block_size = kBlock,
                                 .topk = 16,
                                 .seqlens_q = {total_q},
                                 .seqlens_k = {kBlocks * kBlock}});
    Buffer &index_q = memory.tensors.at("index_q"), &index_k = memory.tensors.at("index_k");
    index_q.fill(0);
    for (std::int64_t row = 0; row < index_q.shape()[0]; ++row) {
      for (std::int64_t r = 0; r < index_q.shape()[1]; ++r) index_q.set({row, r, 0}, 1);
    }
    index_k.fill(0);
    std::mt19937_64 random(9);
    for (std::int64_t block = 0; block < kBlocks; ++block) {
      const double score = score_of(block, random);
      for (std::int64_t i = 0; i < kBlock; ++i) index_k.set({block * kBlock + i, 0}, score);
    }
    return memory;
  }

  /// Exact in bf16.
  static double score_of(std::int64_t block, std::mt19937_64& random) {
    const auto of_bits = [](std::int64_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits << 16)); };
    const double odd[] = {kNan, kNan, kNan, -kInf, kInf, -0.0, 0.0, 1.0};
    switch (GetParam()) {
      case Scores::kRandom:
        return of_bits(0x3f00 + static_cast<std::int64_t>(random() % 4096)) * (random() % 2 == 0 ? 1 : -1);
      case Scores::kLevels:
        return static_cast<double>(random() % 5);
      case Scores::kEqual:
        return -1;
      case Scores::kRising:
        return of_bits(0x3f80 + block);
      case Scores::kFalling:
        return -of_bits(0x3f80 + block);
      case Scores::kOdd:
        return odd[random() % 8];
    }
    return 0;
  }

  /// Every time with another topk and other forced kv_blocks.
  Layer next_layer(const Layer& memory, const std::vector<std::int64_t>& seqlens_q,
                   const std::vector<std::int64_t>& seqlens_k) {
    constexpr std::int32_t kTopk[] = {16, 1, 24, 25, 64}, kInit[] = {0, 1, 0, 3, 0, 5, 2}, kLocal[] = {1, 0, 2};
    Layer layer = with_lengths(memory, seqlens_q, seqlens_k);
    layer.shape.topk = layer.config.topk = kTopk[turn_ % 5];
    layer.shape.num_init_blocks = layer.config.num_init_blocks = kInit[turn_ % 7];
    layer.shape.num_local_blocks = layer.config.num_local_blocks = kLocal[turn_ % 3];
    ++turn_;
    return layer;
  }

  static void expect_exact_selection(const Layer& layer) {
    const Buffer expected = judged(layer, OPENMSA_OP_SELECT_BLOCKS, OPENMSA_BACKEND_CPU).at("topk_indices");
    for (const openmsa_op op : {OPENMSA_OP_SELECT_BLOCKS, OPENMSA_OP_MSA_ATTENTION}) {
      EXPECT_TRUE(run(layer, op).at("topk_indices").same_bits(expected)) << openmsa_op_name(op);
    }
  }

  int turn_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Scores, DecodeChoice,
                         testing::Values(Scores::kRandom, Scores::kLevels, Scores::kEqual, Scores::kRising,
                                         Scores::kFalling, Scores::kOdd));

/// One row of scores, of select_blocks alone and of the whole layer.
TEST_P(DecodeChoice, OfOneRow) {
  const Layer keys = memory(1);
  for (const std::int64_t blocks :
       {1, 2, 5, 16, 17, 18, 63, 64, 66, 127, 129, 131, 257, 1023, 1279, 1281, 1284, 2049, 6145, 8191, 8192}) {
    const Layer layer = next_layer(keys, {1}, {blocks * kBlock - blocks % 3});
    SCOPED_TRACE(testing::Message() << blocks << " kv_blocks, topk " << layer.config.topk << ", "
                                    << layer.config.num_init_blocks << " and " << layer.config.num_local_blocks
                                    << " forced");
    expect_exact_selection(layer);
  }
}

/// Rows enough for every SM, so that a CTA of the layer chooses for four queries with two warps each, or for what is left
/// of them.
TEST_P(DecodeChoice, OfSeveralRowsAtOnce) {
  const Layer keys = memory(80);
  for (const std::int64_t queries : {16, 14, 13}) {
    for (int i = 0; i < 5; ++i) {
      const Layer layer =
          next_layer(keys, {queries, queries, queries, queries, queries},
                     {20 * kBlock + i, 131 * kBlock - i, 514 * kBlock + 5, 1540 * kBlock, 5900 * kBlock});
      SCOPED_TRACE(testing::Message() << queries << " queries, topk " << layer.config.topk);
      expect_exact_selection(layer);
    }
  }
}

}  // namespace
}  // namespace openmsa::test
