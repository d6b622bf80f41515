// The exponential of the softmax, with every instruction set.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/tile/tile.h"

namespace openmsa::test {
namespace {

constexpr std::int64_t kColumns = cpu::kLanes;

/// exp of rows of kColumns numbers.
std::vector<float> exponentials(std::vector<float> x) {
  const auto rows = static_cast<std::int64_t>(x.size()) / kColumns;
  const std::vector<float> limit(kColumns, static_cast<float>(rows)), zero(kColumns, 0.0f);
  cpu::tile_ops().probabilities(x.data(), kColumns, rows, kColumns, limit.data(), zero.data());
  return x;
}

TEST(Exponential, IsWithinTwoRoundings) {
  std::vector<float> x(kColumns * 10000);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = -87.0f * static_cast<float>(i) / static_cast<float>(x.size());
  const std::vector<float> y = exponentials(x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = std::exp(static_cast<double>(x[i]));
    ASSERT_NEAR(y[i] / expected, 1, 1.3e-7) << "exp(" << x[i] << ")";
  }
}

TEST(Exponential, IsZeroFarBelowAndKeepsNan) {
  std::vector<float> x(kColumns, -std::numeric_limits<float>::infinity());
  x[1] = -1000;
  x[2] = std::numeric_limits<float>::lowest();
  for (std::int64_t column = 4; column < kColumns; ++column) {  // other bits behind the one that makes it a NaN
    const std::uint32_t sign = column % 2 == 0 ? 0 : 0x80000000u;
    x[column] = std::bit_cast<float>(0x7fc00000u | sign | (0x1ffu + static_cast<std::uint32_t>(column) * 0x1111u));
  }
  const std::vector<float> y = exponentials(x);
  for (std::int64_t column = 0; column < 4; ++column) EXPECT_EQ(y[column], 0) << "exp(" << x[column] << ")";
  for (std::int64_t column = 4; column < kColumns; ++column) EXPECT_TRUE(std::isnan(y[column])) << "column " << column;
}

}  // namespace
}  // namespace openmsa::test
