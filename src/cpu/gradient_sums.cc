#include "cpu/gradient_sums.h"

namespace openmsa::cpu {
namespace {

/// The first column that sees a key: columns are of ascending queries.
std::int64_t first_to_see(const PairFactors& factors, std::int64_t key) {
  const auto sees = [&](float limit) { return static_cast<float>(key) < limit; };
  return std::find_if(factors.limit, factors.limit + factors.columns, sees) - factors.limit;
}

bool sees_all(const PairFactors& factors) { return first_to_see(factors, factors.keys - 1) == 0; }

}  // namespace

void sum_over_keys(const PairFactors& factors, const KeyTile& keys, float* sums) {
  const std::int64_t width = pad_lanes(keys.dim);
  const auto multiply = [&](std::int64_t column, std::int64_t columns, std::int64_t count) {
    tile_ops().matmul(columns, width, count, {factors.data + column, 1, kMaxColumns}, keys.data, keys.ld,
                      sums + column * width, width, false);
  };
  if (sees_all(factors) || tile_ops().all_finite(keys.data, keys.ld, factors.keys, width)) {
    return multiply(0, factors.columns, factors.keys);
  }
  for (std::int64_t c = 0; c < factors.columns; ++c) multiply(c, 1, static_cast<std::int64_t>(factors.limit[c]));
}

void add_over_columns(const PairFactors& factors, const QueryTile& queries, float* sums) {
  const std::int64_t width = queries.rows_ld;
  const auto multiply = [&](std::int64_t key, std::int64_t keys, std::int64_t first) {
    tile_ops().matmul(keys, width, factors.columns - first, {factors.data + key * kMaxColumns + first, kMaxColumns, 1},
                      queries.rows + first * width, width, sums + key * width, width, true);
  };
  if (sees_all(factors) || tile_ops().all_finite(queries.rows, width, factors.columns, width)) {
    return multiply(0, factors.keys, 0);
  }
  for (std::int64_t j = 0; j < factors.keys; ++j) multiply(j, 1, first_to_see(factors, j));
}

}  // namespace openmsa::cpu
