// Candidates of a shard by hand, and the selection from those of all shards.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "judge/selection.h"
#include "judge/shards.h"
#include "ref/hand.h"

namespace openmsa::test {
namespace {

constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();

/// One query behind six kv_blocks of 8 keys and one more key, in pages of a kv_block: block b scores scores[b].
Layer scored_layer(const std::vector<double>& scores) {
  Layer layer = hand_layer(1, 1, 49);
  layer.tensors.at("index_q").set({0, 0, 0}, 4);  // times 1/sqrt(16)
  for (std::size_t b = 0; b < scores.size(); ++b) {
    for (std::int64_t j = 0; j < 8; ++j) {
      set_channel0(layer, "index_k", static_cast<std::int64_t>(b) * 8 + j, 0, scores[b]);
    }
  }
  return in_pages(layer, 8);
}

std::vector<std::int64_t> candidates_of(const Layer& layer, std::int32_t count, std::int32_t rank) {
  const Buffer written = run(shard_of(layer, count, rank), OPENMSA_OP_SELECT_CANDIDATES).at("candidates");
  std::vector<std::int64_t> result(static_cast<std::size_t>(written.size()));
  std::memcpy(result.data(), written.bytes().data(), written.bytes().size());
  return result;
}

/// key * 2^32 + (2^32 - 1 - block)
std::int64_t number(std::int64_t key, std::int64_t block) { return key * (std::int64_t{1} << 32) + 0xffffffff - block; }

TEST(Candidates, AreTheBestKvBlocksOfTheShardWithTheirScores) {
  Layer layer = scored_layer({1, -2, 0.5, 8, -0.0, 3});
  layer.config.topk = layer.shape.topk = 4;  // one of them is the local block, which competes nowhere
  constexpr std::int64_t kOne = 0x3f800000, kHalf = 0x3f000000, kThree = 0x40400000, kEight = 0x41000000;
  constexpr std::int64_t kMinusTwo = 0x40000000;  // its bits without the sign
  const std::vector<std::int64_t> even = {number(kOne, 0), number(kHalf, 2), number(0, 4), kNone};
  const std::vector<std::int64_t> odd = {number(kEight, 3), number(kThree, 5), number(-1 - kMinusTwo, 1), kNone};
  EXPECT_EQ(candidates_of(layer, 2, 0), even);
  EXPECT_EQ(candidates_of(layer, 2, 1), odd);
}

TEST(Candidates, WithoutShardsAllKvBlocksCompete) {
  const Layer layer = scored_layer({1, -2, 0.5, 8, 0, 3});
  EXPECT_EQ(candidates_of(layer, 1, 0), (std::vector<std::int64_t>{number(0x41000000, 3), kNone}));
}

TEST(Candidates, NanIsBelowEveryNumber) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  Layer layer = scored_layer({nan, 0, -inf, 0, nan, 0});
  layer.config.topk = layer.shape.topk = 4;
  EXPECT_EQ(candidates_of(layer, 2, 0),
            (std::vector<std::int64_t>{number(-1 - 0x7f800000LL, 2), number(-0x7fffffffLL, 0), number(-0x7fffffffLL, 4),
                                       kNone}));
}

TEST(Candidates, MergedGiveForcedKvBlocksAndTheBestOfAllShards) {
  Layer layer = scored_layer({1, -2, 3, 8, 3, 3});
  layer.config.topk = layer.shape.topk = 5;
  layer.config.num_init_blocks = layer.shape.num_init_blocks = 1;
  std::vector<Buffer> slices;
  for (std::int32_t rank = 0; rank < 3; ++rank) {
    slices.push_back(run(shard_of(layer, 3, rank), OPENMSA_OP_SELECT_CANDIDATES).at("candidates"));
  }
  Layer merging = layer;
  merging.config.shard_count = 3;
  merging.tensors["all_candidates"] = stacked(slices);
  const Buffer chosen = run(merging, OPENMSA_OP_MERGE_CANDIDATES).at("topk_indices");
  EXPECT_EQ(selection_row(chosen, 0, 0), (std::vector<std::int64_t>{0, 2, 3, 4, 6})) << "5 has the score of 2 and 4";
}

}  // namespace
}  // namespace openmsa::test
