// The scale of a row that is rounded to e4m3: it takes the row's largest number to 448. Device code calls it too.
#pragma once

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

}  // namespace openmsa::core
