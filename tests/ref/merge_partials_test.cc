// Attention from two parts, by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ref/hand.h"

namespace openmsa::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// The merge of two parts of one query and head, of which every channel of o is o[s].
TensorMap merged(const std::vector<double>& o, const std::vector<double>& lse) {
  Layer layer = hand_layer(1, 1, 1);
  layer.config.shard_count = 2;
  Buffer partial_o(OPENMSA_FLOAT64, {2, 1, 1, 16});
  for (std::int64_t i = 0; i < partial_o.size(); ++i) partial_o.set(i, o[static_cast<std::size_t>(i / 16)]);
  layer.tensors["partial_o"] = partial_o;
  layer.tensors["partial_lse"] = Buffer(OPENMSA_FLOAT64, {2, 1, 1}, lse);
  return run(layer, OPENMSA_OP_MERGE_PARTIALS);
}

TEST(MergePartials, WeighsThePartsByTheirShareOfProbability) {
  const TensorMap got = merged({1, 5}, {std::log(3.0), std::log(1.0)});
  EXPECT_DOUBLE_EQ(got.at("o")[0], 2) << "3/4 of 1 and 1/4 of 5";
  EXPECT_DOUBLE_EQ(got.at("o")[15], 2);
  EXPECT_DOUBLE_EQ(got.at("lse")[0], std::log(4.0));
}

TEST(MergePartials, LargeLogarithmsDoNotOverflow) {
  const TensorMap got = merged({1, 5}, {1e4 + std::log(3.0), 1e4});
  EXPECT_NEAR(got.at("o")[0], 2, 1e-9);
  EXPECT_NEAR(got.at("lse")[0], 1e4 + std::log(4.0), 1e-9);
}

TEST(MergePartials, AnEmptyPartGivesNothingWhateverItHolds) {
  for (const double garbage : {0.0, kNan, kInf}) {
    const TensorMap got = merged({garbage, 5}, {-kInf, 0.25});
    EXPECT_EQ(got.at("o")[3], 5);
    EXPECT_EQ(got.at("lse")[0], 0.25);
  }
  const TensorMap empty = merged({kNan, 1}, {-kInf, -kInf});
  EXPECT_EQ(empty.at("o")[3], 0);
  EXPECT_EQ(empty.at("lse")[0], -kInf);
}

TEST(MergePartials, NanAndInfStay) {
  for (const double lse : {kNan, kInf}) {
    const TensorMap got = merged({1, 5}, {0, lse});
    EXPECT_TRUE(std::isnan(got.at("o")[0]));
    EXPECT_TRUE(std::isnan(got.at("lse")[0]));
  }
  EXPECT_TRUE(std::isnan(merged({1, kNan}, {0, 0}).at("o")[0]));
  EXPECT_EQ(merged({1, kNan}, {0, 0}).at("lse")[0], std::log(2.0));
}

}  // namespace
}  // namespace openmsa::test
