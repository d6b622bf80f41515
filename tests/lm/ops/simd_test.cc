// Rows that no vector divides: every length from less than a vector to more than two of them.
#include "lm/ops/simd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "lm/support.h"

namespace openmsa::test {
namespace {

constexpr std::int64_t kLongest = 41;
constexpr float kAfter = 12345;  // stands after a row and must stay

class RowOps : public testing::TestWithParam<std::int64_t> {
 protected:
  const std::int64_t count_ = GetParam();
  const lm::RowOps& ops_ = lm::row_ops();

  /// Random numbers, then kAfter.
  std::vector<float> row(std::uint64_t seed, float scale = 1.0f) const {
    std::vector<float> values = random_floats(static_cast<std::size_t>(count_), seed, scale);
    values.push_back(kAfter);
    return values;
  }

  template <class Expected>
  void expect_row(const std::vector<float>& got, const Expected& expected) const {
    for (std::size_t i = 0; i < static_cast<std::size_t>(count_); ++i) {
      const double value = expected(i);
      ASSERT_NEAR(got[i], value, 2e-6 * std::max(1.0, std::abs(value))) << "at " << i << " of " << count_;
    }
    EXPECT_EQ(got.back(), kAfter);
  }
};

TEST_P(RowOps, SumsEveryElementOnce) {
  const std::vector<float> x = row(1);
  std::vector<io::BFloat16> w;
  for (const float value : row(2)) w.push_back(io::to_bfloat16(value));
  double squares = 0, product = 0;
  for (std::size_t i = 0; i + 1 < x.size(); ++i) {
    squares += static_cast<double>(x[i]) * x[i];
    product += static_cast<double>(io::to_float(w[i])) * x[i];
  }
  EXPECT_NEAR(ops_.sum_of_squares(count_, x.data()), squares, 1e-5 * squares);
  EXPECT_NEAR(ops_.dot_bf16(count_, w.data(), x.data()), product, 1e-5 * squares);
}

TEST_P(RowOps, Swiglu) {
  const std::vector<float> gate = row(1, 4), up = row(2, 4);
  std::vector<float> y(gate.size(), kAfter);
  ops_.swiglu(count_, 1.702f, 3.0f, gate.data(), up.data(), y.data());
  expect_row(y, [&](std::size_t i) {
    const double g = std::min(gate[i], 3.0f), u = std::clamp(up[i], -3.0f, 3.0f);
    return (u + 1) * g / (1 + std::exp(-1.702 * g));
  });
}

TEST_P(RowOps, Rotation) {
  // The halves of a head lie side by side: what stands after the second is kAfter.
  std::vector<float> x = random_floats(static_cast<std::size_t>(2 * count_), 1);
  x.push_back(kAfter);
  const std::vector<float> before = x, cosines = row(2), sines = row(3);
  ops_.rotate(count_, x.data(), cosines.data(), sines.data(), -1);
  const auto half = static_cast<std::size_t>(count_);
  for (std::size_t c = 0; c < half; ++c) {
    ASSERT_NEAR(x[c], before[c] * cosines[c] + before[half + c] * sines[c], 1e-6);
    ASSERT_NEAR(x[half + c], before[half + c] * cosines[c] - before[c] * sines[c], 1e-6);
  }
  EXPECT_EQ(x.back(), kAfter);
}

TEST_P(RowOps, ScaledSoftmax) {
  std::vector<float> logits = row(1, 5);
  for (float& logit : logits) logit -= logit == kAfter ? 0 : 1000;  // exp() of it alone would be 0
  std::vector<float> p = logits;
  double sum = 0;
  for (std::size_t i = 0; i + 1 < logits.size(); ++i) sum += std::exp(logits[i] + 1000.0);
  EXPECT_NEAR(ops_.scaled_softmax(count_, p.data(), 0.5f), std::log(sum) - 1000, 1e-4);
  expect_row(p, [&](std::size_t i) { return 0.5 * std::exp(logits[i] + 1000.0) / sum; });
}

TEST_P(RowOps, Adamw) {
  const lm::AdamwCoefficients c{0.9f, 0.95f, 1e-3f, 0.1f, 0.2f, 1.5f, 2.5f};
  const std::vector<float> g = row(1), m = row(2), w = row(4);
  std::vector<float> v = row(3), new_m = m, new_w = w;
  for (float& value : v) value = std::abs(value);
  std::vector<float> new_v = v;
  ops_.adamw(count_, c, g.data(), new_m.data(), new_v.data(), new_w.data());
  const auto first = [&](std::size_t i) { return 0.9 * m[i] + 0.1 * g[i]; };
  const auto second = [&](std::size_t i) { return 0.95 * v[i] + 0.05 * g[i] * g[i]; };
  expect_row(new_m, first);
  expect_row(new_v, second);
  expect_row(new_w, [&](std::size_t i) {
    return w[i] - 0.1 * (1.5 * first(i) / (std::sqrt(2.5 * second(i)) + 1e-3) + 0.2 * w[i]);
  });
}

INSTANTIATE_TEST_SUITE_P(EveryLength, RowOps, testing::Range<std::int64_t>(1, kLongest));

}  // namespace
}  // namespace openmsa::test
