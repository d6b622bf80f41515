#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "io/error.h"
#include "lm/use/generate.h"

namespace openmsa::test {
namespace {

std::vector<int> counts(const std::vector<float>& logits, const lm::SamplingOptions& options, int draws) {
  lm::Random random(1);
  std::vector<int> result(logits.size());
  for (int i = 0; i < draws; ++i) ++result[static_cast<std::size_t>(lm::sample(logits, options, random))];
  return result;
}

TEST(Sampler, GreedyTakesTheLowestOfTheBest) {
  lm::Random random(1);
  EXPECT_EQ(lm::sample(std::vector<float>{0, 3, 1, 3}, {}, random), 1);
}

TEST(Sampler, RefusesNanAndInfinity) {
  lm::Random random(1);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const lm::SamplingOptions& options : {lm::SamplingOptions{}, lm::SamplingOptions{1.0, 0.9}}) {
    EXPECT_THROW(lm::sample(std::vector<float>{0, std::nanf(""), 1}, options, random), io::InputError);
    EXPECT_THROW(lm::sample(std::vector<float>{0, infinity}, options, random), io::InputError);
    EXPECT_THROW(lm::sample(std::vector<float>{-infinity, -infinity}, options, random), io::InputError);
    EXPECT_EQ(lm::sample(std::vector<float>{-infinity, 0}, options, random), 1);
  }
}

TEST(Sampler, DrawsInProportion) {
  const std::vector<float> logits = {std::log(1.0f), std::log(2.0f), std::log(5.0f)};
  const auto drawn = counts(logits, {1.0, 1.0}, 8000);
  EXPECT_NEAR(drawn[0], 1000, 120);
  EXPECT_NEAR(drawn[1], 2000, 160);
  EXPECT_NEAR(drawn[2], 5000, 180);
}

TEST(Sampler, TemperatureSharpensAndFlattens) {
  const std::vector<float> logits = {std::log(1.0f), std::log(3.0f)};
  EXPECT_NEAR(counts(logits, {0.5, 1.0}, 10000)[0], 1000, 120);  // 1 : 9
  EXPECT_NEAR(counts(logits, {2.0, 1.0}, 10000)[0], 10000 / (1 + std::sqrt(3.0)), 200);
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.5f), std::log(0.3f), std::log(0.1f)};
  const auto two = counts(logits, {1.0, 0.79}, 8000);
  EXPECT_EQ(two[0] + two[3], 0);
  EXPECT_NEAR(two[1], 5000, 180);
  const auto one = counts(logits, {1.0, 0.01}, 100);
  EXPECT_EQ(one[1], 100);
  const auto three = counts(logits, {1.0, 0.85}, 8000);  // equal probabilities: the lower token is kept
  EXPECT_GT(three[0], 0);
  EXPECT_EQ(three[3], 0);
}

TEST(Sampler, DependsOnTheSeedAlone) {
  const std::vector<float> logits(64, 0.0f);
  lm::Random first(5);
  lm::Random second(5);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(lm::sample(logits, {1.0, 0.9}, first), lm::sample(logits, {1.0, 0.9}, second));
}

}  // namespace
}  // namespace openmsa::test
