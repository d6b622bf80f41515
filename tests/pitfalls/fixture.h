// Mistakes that other implementations of sparse attention made, one test each, on both backends.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/shapes.h"

namespace openmsa::test {

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

class Pitfalls : public testing::TestWithParam<openmsa_backend> {
 protected:
  Layer layer(const LayerShape& shape, std::uint64_t seed = 1) const { return make_layer(shape, seed).on(GetParam()); }
};

/// Entries [begin, end) of the first dimension.
inline void fill_rows(Buffer& buffer, std::int64_t begin, std::int64_t end, double value) {
  const std::int64_t row = buffer.size() / buffer.shape()[0];
  for (std::int64_t i = begin * row; i < end * row; ++i) buffer.set(i, value);
}

inline bool is_finite(const Buffer& buffer) {
  const std::vector<double> values = buffer.values();
  return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
}

inline bool is_zero(const Buffer& buffer) {
  const std::vector<double> values = buffer.values();
  return std::all_of(values.begin(), values.end(), [](double value) { return value == 0; });
}

}  // namespace openmsa::test
