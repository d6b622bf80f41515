#include "lm/ops/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lm/support.h"

namespace openmsa::test {
namespace {

TEST(RmsNorm, ByHand) {
  const std::vector<float> x = {3.0f, -4.0f};
  const std::vector<float> w = {0.0f, 1.0f};
  std::vector<float> y(2);
  lm::rms_norm({1, 2, 0.0f}, x.data(), w.data(), y.data());
  const float rms = std::sqrt(12.5f);
  EXPECT_FLOAT_EQ(y[0], 3.0f / rms);
  EXPECT_FLOAT_EQ(y[1], -8.0f / rms);
}

TEST(RmsNorm, GradientsMatchFiniteDifferences) {
  const lm::NormShape shape{5, 12, 1e-3f};
  std::vector<float> x = random_floats(60, 1);
  std::vector<float> w = random_floats(12, 2, 0.5f);
  const std::vector<float> d_y = random_floats(60, 3);
  std::vector<float> y(60);
  const auto loss = [&] {
    lm::rms_norm(shape, x.data(), w.data(), y.data());
    return dot(y, d_y);
  };
  std::vector<float> d_x(60, 0.0f);
  std::vector<float> d_w(12, 0.0f);
  lm::rms_norm_backward(shape, x.data(), w.data(), d_y.data(), d_x.data(), d_w.data());
  expect_gradient("x", x, d_x, loss);
  expect_gradient("w", w, d_w, loss);
}

TEST(RmsNorm, BackwardWorksInPlaceAndAdds) {
  const lm::NormShape shape{300, 8, 1e-6f};  // more rows than one chunk
  const std::vector<float> x = random_floats(2400, 1);
  const std::vector<float> w = random_floats(8, 2);
  const std::vector<float> d_y = random_floats(2400, 3);
  std::vector<float> separate(2400);
  std::vector<float> d_w(8, 0.0f);
  lm::rms_norm_backward(shape, x.data(), w.data(), d_y.data(), separate.data(), d_w.data());

  std::vector<float> in_place = d_y;
  std::vector<float> d_w_twice = d_w;
  lm::rms_norm_backward(shape, x.data(), w.data(), in_place.data(), in_place.data(), d_w_twice.data());
  EXPECT_EQ(in_place, separate);
  for (int c = 0; c < 8; ++c) EXPECT_FLOAT_EQ(d_w_twice[c], 2 * d_w[c]);

  std::vector<float> added(2400, 1.0f);
  lm::rms_norm_backward(shape, x.data(), w.data(), d_y.data(), added.data(), d_w.data(), lm::Write::kAdd);
  for (int i = 0; i < 2400; ++i) ASSERT_NEAR(added[i], 1.0f + separate[i], 1e-5);
}

}  // namespace
}  // namespace openmsa::test
