#include "lm/ops/linear.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lm/support.h"

namespace openmsa::test {
namespace {

constexpr lm::LinearShape kShape{515, 19, 70};  // more rows than one chunk, and not a multiple of it

struct Problem {
  std::vector<float> x = random_floats(515 * 19, 1);
  std::vector<float> w = random_floats(70 * 19, 2);
  std::vector<float> d_y = random_floats(515 * 70, 3);
};

TEST(Linear, ForwardIsTheProduct) {
  const Problem problem;
  std::vector<float> y(515 * 70, 1.0f);
  lm::linear(kShape, problem.x.data(), problem.w.data(), y.data(), lm::Write::kAdd);
  for (int t = 0; t < 515; t += 57) {
    for (int o = 0; o < 70; ++o) {
      double expected = 1.0;
      for (int i = 0; i < 19; ++i) expected += problem.x[t * 19 + i] * problem.w[o * 19 + i];
      ASSERT_NEAR(y[t * 70 + o], expected, 1e-4);
    }
  }
}

/// Rows in fp32 and bf16 side by side, for few tokens and for many: the former as they are, the latter with a rounded
/// product that is added and rounded again.
TEST(Linear, MatricesOfSeveralBlocks) {
  const Problem problem;
  std::vector<io::BFloat16> bf16;
  for (const float value : problem.w) bf16.push_back(io::to_bfloat16(value));
  const lm::WeightMatrix whole{19, {{3, problem.w.data(), nullptr}, {67, nullptr, bf16.data() + 3 * 19}}};
  const lm::WeightMatrix w = whole.rows(1, 69);
  for (const std::int64_t tokens : {1, 4, 5, 515}) {
    std::vector<float> y(static_cast<std::size_t>(tokens * 69), 1.0f);
    lm::linear({tokens, 19, 69}, problem.x.data(), w, y.data(), lm::Write::kAdd);
    for (std::int64_t t = 0; t < tokens; t += 3) {
      for (int o = 0; o < 69; ++o) {
        const bool is_bf16 = o >= 2;
        double product = 0.0;
        for (int i = 0; i < 19; ++i) {
          const auto at = static_cast<std::size_t>((o + 1) * 19 + i);
          product +=
              problem.x[static_cast<std::size_t>(t * 19 + i)] * (is_bf16 ? io::to_float(bf16[at]) : problem.w[at]);
        }
        const float sum = y[static_cast<std::size_t>(t * 69 + o)];
        ASSERT_NEAR(sum, 1.0 + product, is_bf16 ? (2 + std::abs(product)) / 128 : 1e-4) << tokens << " tokens";
        ASSERT_TRUE(!is_bf16 || sum == lm::bf16_rounded(sum));
      }
    }
  }
  std::vector<float> row(19);
  w.copy_row(1, row.data());
  EXPECT_EQ(row[5], problem.w[2 * 19 + 5]);
  w.copy_row(68, row.data());
  EXPECT_EQ(row[5], io::to_float(bf16[69 * 19 + 5]));
}

/// In vectors as one by one, also in a row that no vector divides.
TEST(Precision, RoundsToTheNearestBf16) {
  std::vector<float> values = random_floats(1003, 1, 100.0f);
  values.insert(values.end(), {1.0f + 0x1p-8f, 1.0f + 0x3p-8f, INFINITY, NAN, -0.0f, 0x1p-133f});
  std::vector<float> rounded = values;
  lm::round_to(lm::Precision::kFp32, rounded);
  ASSERT_EQ(rounded[7], values[7]);
  lm::round_to(lm::Precision::kBf16, rounded);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i])) {
      EXPECT_TRUE(std::isnan(rounded[i]));
    } else {
      EXPECT_EQ(rounded[i], lm::bf16_rounded(values[i])) << values[i];
    }
  }
  EXPECT_EQ(lm::bf16_rounded(1.0f + 0x1p-8f), 1.0f);  // ties to even
  EXPECT_EQ(lm::bf16_rounded(1.0f + 0x3p-8f), 1.0f + 0x1p-6f);
  EXPECT_TRUE(std::isinf(lm::bf16_rounded(INFINITY)));
  EXPECT_TRUE(std::isnan(lm::bf16_rounded(NAN)));
}

TEST(Linear, BackwardOfTheInput) {
  const Problem problem;
  std::vector<float> d_x(515 * 19, 1e30f);
  lm::linear_backward_input(kShape, problem.d_y.data(), problem.w.data(), d_x.data());
  for (int t = 0; t < 515; t += 57) {
    for (int i = 0; i < 19; ++i) {
      double expected = 0.0;
      for (int o = 0; o < 70; ++o) expected += problem.d_y[t * 70 + o] * problem.w[o * 19 + i];
      ASSERT_NEAR(d_x[t * 19 + i], expected, 1e-4);
    }
  }
}

TEST(Linear, BackwardOfTheWeightAdds) {
  const Problem problem;
  std::vector<float> d_w(70 * 19, 2.0f);
  lm::linear_backward_weight(kShape, problem.d_y.data(), problem.x.data(), d_w.data());
  for (int o = 0; o < 70; ++o) {
    for (int i = 0; i < 19; ++i) {
      double expected = 2.0;
      for (int t = 0; t < 515; ++t) expected += problem.d_y[t * 70 + o] * problem.x[t * 19 + i];
      ASSERT_NEAR(d_w[o * 19 + i], expected, 1e-3);
    }
  }
}

}  // namespace
}  // namespace openmsa::test
