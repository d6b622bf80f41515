// Order statistics of a warp's registers by bitonic sort: comparisons between lanes are shuffles.
#pragma once

#include <cstdint>

#include "cuda/common/math.h"

namespace openmsa::cuda::generic {

/// Makes the sequence over lanes descending (ascending in lanes with `reverse`), from runs of kFrom / 2 on.
template <int kFrom>
__device__ __forceinline__ float sort_lanes(float value, int lane, bool reverse) {
#pragma unroll
  for (int run = kFrom; run <= 32; run *= 2) {
#pragma unroll
    for (int distance = run / 2; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(kFullWarp, value, distance);
      const bool is_first = (lane & distance) == 0, ascending = (lane & run & 31) != 0;
      value = (is_first != ascending) != reverse ? fmaxf(value, other) : fminf(value, other);
    }
  }
  return value;
}

/// The k-th largest of 32 values, one per lane; k <= 32.
__device__ __forceinline__ float kth_largest(float value, int k, int lane) {
  return __shfl_sync(kFullWarp, sort_lanes<2>(value, lane, false), k - 1);
}

/// The k-th largest of 64 values, two per lane; k <= 64. One half sorted down and the other up are one bitonic
/// sequence, which a single exchange splits into the 32 largest and the 32 smallest.
__device__ __forceinline__ float kth_largest(float a, float b, int k, int lane) {
  a = sort_lanes<2>(a, lane, false);
  b = sort_lanes<2>(b, lane, true);
  const float half = k <= 32 ? fmaxf(a, b) : fminf(a, b);
  return __shfl_sync(kFullWarp, sort_lanes<32>(half, lane, false), (k - 1) & 31);
}

}  // namespace openmsa::cuda::generic
