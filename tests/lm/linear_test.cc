#include "lm/linear.h"

#include <gtest/gtest.h>

#include "support.h"

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
