#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ref/hand.h"

namespace openmsa::test {
namespace {

using testing::ElementsAre;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Queries 17, 18 and 19 of 20 tokens; index_q = 4 makes the token score 4 x / sqrt(16) = x.
Layer scored_layer(const std::vector<double>& x) {
  Layer layer = hand_layer(1, 3, 20);
  for (std::int64_t t = 0; t < 3; ++t) set_channel0(layer, "index_q", t, 0, 4);
  for (std::size_t j = 0; j < x.size(); ++j) set_channel0(layer, "index_k", static_cast<std::int64_t>(j), 0, x[j]);
  return layer;
}

TEST(BlockScores, AreTheMaximumOfVisibleTokenScores) {
  // Blocks: tokens 0-7, 8-15, 16-19. Token 19 holds 9, which only the last query sees.
  const Layer layer = scored_layer({1, 2, 3, -4, 0, 0, 0, 0, -1, -2, -3, -4, -5, -6, -7, -8, 5, 5, 6, 9});
  const Buffer scores = run(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  EXPECT_THAT(scores.values(), ElementsAre(3, -1, 5, /**/ 3, -1, 6, /**/ 3, -1, 9));
}

TEST(BlockScores, NanLosesToEveryNumber) {
  // Block 0 holds a NaN and -inf, block 1 nothing but NaN.
  const Layer layer = scored_layer({kNan, -kInf, -kInf, -kInf, -kInf, -kInf, -kInf, -kInf,  //
                                    kNan, kNan, kNan, kNan, kNan, kNan, kNan, kNan, 7});
  const Buffer scores = run(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  // In the other channels 0 * 0 is added, so that -inf stays -inf.
  EXPECT_EQ(scores.at({0, 0, 0}), -kInf);
  EXPECT_TRUE(std::isnan(scores.at({0, 0, 1})));
  EXPECT_EQ(scores.at({0, 0, 2}), 7);
}

TEST(BlockScores, AreMinusInfinityPastTheVisibleBlocks) {
  const Layer layer = hand_layer(1, 20, 20);
  const Buffer scores = run(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  for (std::int64_t t = 0; t < 20; ++t) {
    for (std::int64_t b = 0; b < 3; ++b) EXPECT_EQ(scores.at({0, t, b}), b <= t / 8 ? 0 : -kInf) << t << ", " << b;
  }
}

}  // namespace
}  // namespace openmsa::test
