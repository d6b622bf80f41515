#include "lm/ops/cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lm/support.h"

namespace openmsa::test {
namespace {

TEST(CrossEntropy, OfEqualLogitsIsTheLogarithmOfTheirNumber) {
  std::vector<float> logits(3 * 7, 2.5f);
  EXPECT_NEAR(lm::cross_entropy(logits, std::vector<std::int32_t>{0, 3, 6}), std::log(7.0), 1e-6);
  EXPECT_NEAR(logits[0], (1.0 / 7.0 - 1.0) / 3.0, 1e-6);
  EXPECT_NEAR(logits[1], 1.0 / 7.0 / 3.0, 1e-6);
}

TEST(CrossEntropy, HoldsForLargeLogits) {
  std::vector<float> logits = {1e4f, 0.0f, -1e4f};
  EXPECT_NEAR(lm::cross_entropy(logits, std::vector<std::int32_t>{1}), 1e4, 1e-2);
}

TEST(CrossEntropy, NaNIsNotHidden) {
  for (const std::size_t place : {0u, 5u, 19u}) {
    std::vector<float> logits(20, 1.0f);
    logits[place] = NAN;
    EXPECT_TRUE(std::isnan(lm::cross_entropy(logits, std::vector<std::int32_t>{7}))) << place;
  }
}

TEST(CrossEntropy, GradientMatchesFiniteDifferences) {
  std::vector<float> logits = random_floats(5 * 11, 1, 2.0f);
  const std::vector<std::int32_t> targets = random_tokens(5, 11, 2);
  std::vector<float> gradient = logits;
  lm::cross_entropy(gradient, targets);
  expect_gradient("logits", logits, gradient, [&] {
    std::vector<float> copy = logits;
    return lm::cross_entropy(copy, targets);
  });
}

}  // namespace
}  // namespace openmsa::test
