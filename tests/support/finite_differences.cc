#include "support/finite_differences.h"

#include <gtest/gtest.h>

namespace openmsa::test {

void expect_gradient(Layer layer, const std::string& name, const Buffer& gradient,
                     const std::function<double(const Layer&)>& loss) {
  constexpr double kStep = 1e-5;  // truncation error near kStep^2, rounding error near 1e-16 / kStep
  constexpr double kTolerance = 1e-8;
  Buffer& tensor = layer.tensors.at(name);
  ASSERT_EQ(tensor.dtype(), OPENMSA_FLOAT64);
  ASSERT_EQ(tensor.shape(), gradient.shape());
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    const double value = tensor[i];
    tensor.set(i, value + kStep);
    const double above = loss(layer);
    tensor.set(i, value - kStep);
    const double below = loss(layer);
    tensor.set(i, value);
    ASSERT_NEAR(gradient[i], (above - below) / (2 * kStep), kTolerance) << "element " << i << " of d_" << name;
  }
}

}  // namespace openmsa::test
