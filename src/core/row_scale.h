// The scale of a row that is rounded to e4m3: it takes the row's largest number to 448; and that of a kv_block, which
// follows from its first row. Device code calls them too.
#pragma once

#include <limits>

namespace openmsa::core {

struct RowScale {
  float to_fp8;    // number -> number to round
  float from_fp8;  // rounded number -> number
};

inline constexpr float kLargestFloat8E4M3 = 448;

/// Below this, 448 / amax is past fp32 or amax / 448 not a normal number; such a row counts as zeros.
inline constexpr float kLeastAmax = 0x1p-117f;

/// `amax` is the largest magnitude in the row, NaN ignored.
constexpr RowScale row_scale(float amax) {
  if (amax < kLeastAmax) return {0, 0};
  return {kLargestFloat8E4M3 / amax, amax / kLargestFloat8E4M3};
}

/// How much larger later rows of a kv_block may be than the first before they saturate.
inline constexpr float kBlockHeadroom = 16;

/// The scale of a kv_block, which its rows are divided by. `amax` is the largest magnitude in the first, NaN ignored.
constexpr float block_scale(float amax) {
  const bool has_size = amax >= kLeastAmax && amax <= std::numeric_limits<float>::max();
  return has_size ? amax / (kLargestFloat8E4M3 / kBlockHeadroom) : 1;
}

}  // namespace openmsa::core
