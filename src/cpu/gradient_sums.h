// Sums of gradients over the pairs of a tile of scores [key][column]. A key that a column does not see (causal) has the
// factor 0 there, which leaves a sum as it is unless the other factor is Inf or NaN: 0 times that is NaN. Then each sum
// goes over what is seen alone.
#pragma once

#include <cstdint>

#include "cpu/columns.h"

namespace openmsa::cpu {

/// Factors of the pairs, 0 where a column does not see a key.
struct PairFactors {
  const float* data;  // [keys][kMaxColumns]
  std::int64_t keys;
  std::int64_t columns;
  const float* limit;  // keys that each column sees, of causal_limits
};

/// sums[column] = sum_j factors[j][column] keys[j]; sums [columns][pad_lanes(keys.dim)].
void sum_over_keys(const PairFactors& factors, const KeyTile& keys, float* sums);

/// sums[j] += sum_column factors[j][column] queries.rows[column]; sums [keys][queries.rows_ld].
void add_over_columns(const PairFactors& factors, const QueryTile& queries, float* sums);

}  // namespace openmsa::cpu
