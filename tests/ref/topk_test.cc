#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "support/compare.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

using testing::ElementsAre;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Forced {
  std::int32_t num_init_blocks;
  std::int32_t num_local_blocks;
};

/// The choice of a query that sees exactly the blocks in `scores`; what lies behind them is poison.
std::vector<std::int64_t> choose(const std::vector<double>& scores, std::int32_t topk, Forced forced,
                                 openmsa_backend backend) {
  const auto visible = static_cast<std::int64_t>(scores.size());
  Layer layer = make_layer({.num_heads_q = 1,
                            .num_heads_kv = 1,
                            .block_size = 8,
                            .topk = topk,
                            .num_init_blocks = forced.num_init_blocks,
                            .num_local_blocks = forced.num_local_blocks,
                            .seqlens_q = {1},
                            .seqlens_k = {visible * 8 - 3}})
                    .on(backend);
  Buffer matrix(OPENMSA_FLOAT32, {1, 1, visible + 40});
  for (std::int64_t b = 0; b < visible + 40; ++b) {
    matrix.set(b, b < visible ? scores[static_cast<std::size_t>(b)] : b % 2 == 0 ? kNan : 1e30);
  }
  layer.add({{"block_scores", matrix}});
  return selection_row(run(layer, OPENMSA_OP_TOPK).at("topk_indices"), 0, 0);
}

std::string name(const testing::TestParamInfo<openmsa_backend>& info) {
  return info.param == OPENMSA_BACKEND_CPU         ? "cpu"
         : info.param == OPENMSA_BACKEND_REFERENCE ? "reference"
                                                   : "reference_float32";
}

class Topk : public testing::TestWithParam<openmsa_backend> {};
INSTANTIATE_TEST_SUITE_P(Backends, Topk,
                         testing::Values(OPENMSA_BACKEND_REFERENCE, OPENMSA_BACKEND_REFERENCE_FLOAT32,
                                         OPENMSA_BACKEND_CPU),
                         name);

TEST_P(Topk, LocalBlockThenHighestScoresAscending) {
  EXPECT_THAT(choose({1, 5, 3, 4, 0}, 3, {0, 1}, GetParam()), ElementsAre(1, 3, 4));
}

TEST_P(Topk, FewerBlocksThanTopk) {
  EXPECT_THAT(choose({1, 5}, 4, {0, 1}, GetParam()), ElementsAre(0, 1, -1, -1));
  EXPECT_THAT(choose({1}, 2, {0, 0}, GetParam()), ElementsAre(0, -1));
}

TEST_P(Topk, WithoutLocalBlocksOnlyScoresCount) {
  EXPECT_THAT(choose({1, 5, 3, 4, 0}, 3, {0, 0}, GetParam()), ElementsAre(1, 2, 3));
}

TEST_P(Topk, ForcedBlocksCountTowardsTopk) {
  EXPECT_THAT(choose({0, 5, 3, 4, 0, 0}, 4, {1, 2}, GetParam()), ElementsAre(0, 1, 4, 5));
}

TEST_P(Topk, TooManyForcedBlocksTakeLocalOnesNewestFirst) {
  EXPECT_THAT(choose({9, 9, 9, 9, 0, 0, 0}, 2, {2, 3}, GetParam()), ElementsAre(5, 6));
  // Three local, then block 0 of the two initial ones.
  EXPECT_THAT(choose({0, 0, 9, 9, 0, 0, 0}, 4, {2, 3}, GetParam()), ElementsAre(0, 4, 5, 6));
}

TEST_P(Topk, BlocksForcedTwiceAreTakenOnce) {
  // Local and initial blocks are the same two; the third slot goes to nobody.
  EXPECT_THAT(choose({1, 2}, 3, {5, 5}, GetParam()), ElementsAre(0, 1, -1));
  // Local: 1, 2. Initial: 0, 1. All three are forced, the fourth slot is decided by score: none is left.
  EXPECT_THAT(choose({1, 2, 3}, 4, {2, 2}, GetParam()), ElementsAre(0, 1, 2, -1));
  // Local: 3. Initial: 0. Best of the rest: 2.
  EXPECT_THAT(choose({9, 1, 2, 9}, 3, {1, 1}, GetParam()), ElementsAre(0, 2, 3));
}

TEST_P(Topk, EqualScoresGoToTheLowerBlock) {
  EXPECT_THAT(choose({0, 0, 0, 0, 0, 0}, 3, {0, 1}, GetParam()), ElementsAre(0, 1, 5));
  EXPECT_THAT(choose({1, 2, 2, 2, 1, 0}, 3, {0, 1}, GetParam()), ElementsAre(1, 2, 5));
  EXPECT_THAT(choose({-0.0, 0.0, -0.0, 0.0}, 2, {0, 0}, GetParam()), ElementsAre(0, 1));
}

TEST_P(Topk, NanLosesToEveryNumber) {
  EXPECT_THAT(choose({kNan, -kInf, kNan, -1e30, kNan, 0}, 3, {0, 1}, GetParam()), ElementsAre(1, 3, 5));
  // Numbers exhausted: NaN blocks follow, lowest first.
  EXPECT_THAT(choose({kNan, -kInf, kNan, kNan, 0}, 4, {0, 1}, GetParam()), ElementsAre(0, 1, 2, 4));
  EXPECT_THAT(choose({-kNan, kNan, 1}, 2, {0, 0}, GetParam()), ElementsAre(0, 2));
}

TEST_P(Topk, InfiniteAndHugeScoresAreLegal) {
  EXPECT_THAT(choose({1e20, kInf, 3e38, -kInf, 1}, 3, {0, 1}, GetParam()), ElementsAre(1, 2, 4));
  EXPECT_THAT(choose({kInf, -kInf, kInf, kInf}, 2, {0, 0}, GetParam()), ElementsAre(0, 2));
}

TEST_P(Topk, KeepsTheBestOfMany) {
  // A permutation of 0 to 299, in which the local block is not among the best 63.
  std::vector<double> scores(300);
  std::vector<std::int64_t> best;
  for (std::int64_t b = 0; b < 300; ++b) {
    scores[static_cast<std::size_t>(b)] = static_cast<double>(b * 7919 % 300);
    if (scores[static_cast<std::size_t>(b)] >= 300 - 63) best.push_back(b);
  }
  ASSERT_NE(best.back(), 299);
  best.push_back(299);
  EXPECT_EQ(choose(scores, 64, {0, 1}, GetParam()), best);
}

}  // namespace
}  // namespace openmsa::test
