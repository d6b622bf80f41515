#include "support/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace openmsa::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Chosen blocks of `x` that are not in `y`; both ascending.
std::vector<std::int64_t> missing_from(const std::vector<std::int64_t>& x, const std::vector<std::int64_t>& y) {
  std::vector<std::int64_t> result;
  std::set_difference(x.begin(), x.end(), y.begin(), y.end(), std::back_inserter(result));
  return result;
}

std::vector<std::int64_t> valid_part(std::vector<std::int64_t> row) {
  row.erase(std::remove(row.begin(), row.end(), -1), row.end());
  return row;
}

void expect_well_formed(const Layer& layer, const std::vector<std::int64_t>& row, std::int64_t visible) {
  const auto count = std::min<std::int64_t>(layer.shape.topk, visible);
  for (std::int64_t slot = 0; slot < layer.shape.topk; ++slot) {
    const std::int64_t block = row[static_cast<std::size_t>(slot)];
    if (slot >= count) {
      EXPECT_EQ(block, -1) << "slot " << slot;
    } else {
      EXPECT_TRUE(block >= 0 && block < visible) << "slot " << slot << " holds " << block;
      EXPECT_TRUE(slot == 0 || row[static_cast<std::size_t>(slot - 1)] < block) << "not ascending at slot " << slot;
    }
  }
}

}  // namespace

double relative_error(const Buffer& x, const Buffer& reference) {
  EXPECT_EQ(x.shape(), reference.shape());
  double difference = 0, norm = 0;
  for (std::int64_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - reference[i]) * (x[i] - reference[i]);
    norm += reference[i] * reference[i];
  }
  if (difference == 0) return 0;
  const double error = std::sqrt(difference / norm);
  return std::isnan(error) ? kInfinity : error;
}

double absolute_error(const Buffer& x, const Buffer& reference) {
  EXPECT_EQ(x.shape(), reference.shape());
  double largest = 0;
  for (std::int64_t i = 0; i < x.size(); ++i) {
    if (x[i] == reference[i]) continue;
    const double error = std::abs(x[i] - reference[i]);
    largest = std::isnan(error) ? kInfinity : std::max(largest, error);
  }
  return largest;
}

std::vector<std::int64_t> selection_row(const Buffer& topk_indices, std::int64_t r, std::int64_t row) {
  std::vector<std::int64_t> result;
  for (std::int64_t slot = 0; slot < topk_indices.shape()[2]; ++slot) {
    result.push_back(static_cast<std::int64_t>(topk_indices.at({r, row, slot})));
  }
  return result;
}

void expect_same_selection(const Layer& layer, const Buffer& topk_indices, const Buffer& reference,
                           const Buffer& scores) {
  for (std::int64_t r = 0; r < layer.shape.num_heads_kv; ++r) {
    for (std::int64_t row = 0; row < layer.total_q(); ++row) {
      SCOPED_TRACE(testing::Message() << "head " << r << ", query row " << row);
      const std::int64_t visible = layer.visible_blocks(row);
      const auto got = selection_row(topk_indices, r, row), expected = selection_row(reference, r, row);
      expect_well_formed(layer, got, visible);
      double magnitude = 0;
      for (std::int64_t b = 0; b < visible; ++b) magnitude = std::max(magnitude, std::abs(scores.at({r, row, b})));
      for (const std::int64_t x : missing_from(valid_part(got), valid_part(expected))) {
        for (const std::int64_t y : missing_from(valid_part(expected), valid_part(got))) {
          EXPECT_LT(std::abs(scores.at({r, row, x}) - scores.at({r, row, y})),
                    tolerance(layer.config.dtype).score * magnitude)
              << "chose kv_block " << x << " instead of " << y;
        }
      }
      if (testing::Test::HasFailure()) return;
    }
  }
}

void expect_same_bits(const TensorMap& x, const TensorMap& y) {
  ASSERT_EQ(x.size(), y.size());
  for (const auto& [name, buffer] : x) EXPECT_TRUE(buffer.same_bits(y.at(name))) << name << " differs";
}

}  // namespace openmsa::test
