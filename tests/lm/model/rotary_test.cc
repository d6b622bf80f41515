#include "lm/model/rotary.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lm/support.h"

namespace openmsa::test {
namespace {

lm::RotaryTable make_table(int rotary_dim, double theta, std::int64_t positions) {
  lm::ModelConfig config;
  config.rotary_dim = rotary_dim;
  config.rope_theta = theta;
  lm::RotaryTable table(config);
  table.reserve(positions);
  return table;
}

TEST(Rotary, TurnsTheLeadingChannelsByThePosition) {
  const lm::RotaryTable rotary = make_table(4, 100.0, 8);
  std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const std::vector<std::int32_t> positions = {7};
  rotary.rotate(lm::Precision::kFp32, x.data(), 1, 6, positions);
  // Channels (0, 2) turn by 7, channels (1, 3) by 7 / sqrt(100).
  EXPECT_NEAR(x[0], std::cos(7.0) - 3 * std::sin(7.0), 1e-6);
  EXPECT_NEAR(x[2], 3 * std::cos(7.0) + std::sin(7.0), 1e-6);
  EXPECT_NEAR(x[1], 2 * std::cos(0.7) - 4 * std::sin(0.7), 1e-6);
  EXPECT_NEAR(x[3], 4 * std::cos(0.7) + 2 * std::sin(0.7), 1e-6);
  EXPECT_EQ(x[4], 5);
  EXPECT_EQ(x[5], 6);
}

TEST(Rotary, RoundsLikePyTorchInBf16) {
  const lm::RotaryTable rotary = make_table(2, 100.0, 200);
  const auto round = [](double value) { return lm::bf16_rounded(static_cast<float>(value)); };
  const std::vector<float> values = random_floats(400, 1);
  for (std::int32_t position = 0; position < 200; ++position) {
    const float a = round(values[2 * position]), b = round(values[2 * position + 1]);
    std::vector<float> x = {a, b};
    rotary.rotate(lm::Precision::kBf16, x.data(), 1, 2, std::vector<std::int32_t>{position});
    const float cosine = round(std::cos(position)), sine = round(std::sin(position));
    EXPECT_EQ(x[0], round(round(a * cosine) - round(b * sine)));
    EXPECT_EQ(x[1], round(round(b * cosine) + round(a * sine)));
  }
}

TEST(Rotary, ProductsDependOnTheDistanceAlone) {
  const lm::RotaryTable rotary = make_table(8, 10000.0, 200);
  const auto product = [&](std::int32_t i, std::int32_t j) {
    std::vector<float> q = random_floats(8, 1);
    std::vector<float> k = random_floats(8, 2);
    rotary.rotate(lm::Precision::kFp32, q.data(), 1, 8, std::vector<std::int32_t>{i});
    rotary.rotate(lm::Precision::kFp32, k.data(), 1, 8, std::vector<std::int32_t>{j});
    return dot(q, k);
  };
  EXPECT_NEAR(product(13, 5), product(193, 185), 1e-4);
}

TEST(Rotary, RotateBackIsTheInverse) {
  const lm::RotaryTable rotary = make_table(6, 10000.0, 100);
  const std::vector<float> original = random_floats(2 * 3 * 8, 1);
  std::vector<float> x = original;
  const std::vector<std::int32_t> positions = {3, 99};
  rotary.rotate(lm::Precision::kFp32, x.data(), 3, 8, positions);
  rotary.rotate_back(x.data(), 3, 8, positions);
  for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], original[i], 1e-5);
}

}  // namespace
}  // namespace openmsa::test
