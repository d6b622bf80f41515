// From the scores of a warpgroup's rows with a stage of keys, in accumulators, to one maximum per row and kv_block.
#pragma once

#include <cute/tensor.hpp>

#include "cuda/common/math.h"
#include "cuda/sm90/tile/max3.cuh"

namespace openmsa::cuda::sm90::prefill {

/// Multiplies the scores of 64-row product m by the scales of their keys.
template <class Config, class Accumulator>
__device__ __forceinline__ void scale_columns(Accumulator& acc, int m, const float* k_scale, int lane) {
  using namespace cute;
  CUTE_UNROLL
  for (int n = 0; n < Config::kKeys / 8; ++n) {
    const float2 scale = *reinterpret_cast<const float2*>(k_scale + n * 8 + lane % 4 * 2);
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      acc(make_coord(0, half, n), m, 0) *= scale.x;
      acc(make_coord(1, half, n), m, 0) *= scale.y;
    }
  }
}

/// The scores of the i-th of this thread's columns of a kv_block that begins at column `first`, in held row `row`.
template <class Config, class Accumulator>
__device__ __forceinline__ float held_score(const Accumulator& acc, int row, int first, int i) {
  return acc(cute::make_coord(i % 2, row % 2, first / 8 + i / 2), row / 2, 0);
}

/// From the largest bits of a kv_block's scores in each held row to the largest score among those that the row sees,
/// up to `limit` (exclusive); NaN where none counts, so that NaN loses to every number.
template <class Config, int kHeld, class Accumulator>
__device__ __forceinline__ void exact_max(const Accumulator& acc, int first, const int (&limit)[kHeld],
                                          const std::int32_t (&bits)[kHeld], int lane, float (&top)[kHeld]) {
  constexpr int kColumns = Config::kBlock / 4;  // of a thread
  bool is_exact = true;
  CUTE_UNROLL
  for (int row = 0; row < kHeld; ++row) {
    top[row] = __int_as_float(bits[row]);
    is_exact &= is_positive_number(bits[row]) && limit[row] >= first + Config::kBlock;
  }
  if (is_exact) return;
  CUTE_UNROLL
  for (int row = 0; row < kHeld; ++row) {
    const bool sees_all = limit[row] >= first + Config::kBlock;
    const auto score = [&](int i) { return held_score<Config>(acc, row, first, i); };
    if (sees_all && bits[row] < 0) {
      top[row] = largest_negative<kColumns>(score);
    } else if (!sees_all || !is_positive_number(bits[row])) {
      top[row] = NAN;
      CUTE_UNROLL
      for (int i = 0; i < kColumns; ++i) {
        const bool is_seen = first + i / 2 * 8 + lane % 4 * 2 + i % 2 < limit[row];
        top[row] = fmaxf(top[row], is_seen ? score(i) : NAN);
      }
    }
  }
}

/// From the maxima of each lane's own columns to those of whole rows: afterwards lane i of a quad has the one of row i.
template <int kHeld>
__device__ __forceinline__ float exchange_max(const float (&top)[kHeld], int lane) {
  const bool odd = lane & 1, upper = lane & 2;
  float low = odd ? top[1] : top[0], other = odd ? top[0] : top[1];
  low = fmaxf(low, __shfl_xor_sync(kFullWarp, other, 1));
  if constexpr (kHeld == 2) {
    return fmaxf(low, __shfl_xor_sync(kFullWarp, low, 2));
  } else {
    float high = odd ? top[3] : top[2];
    other = odd ? top[2] : top[3];
    high = fmaxf(high, __shfl_xor_sync(kFullWarp, other, 1));
    const float mine = upper ? high : low, theirs = upper ? low : high;
    return fmaxf(mine, __shfl_xor_sync(kFullWarp, theirs, 2));
  }
}

}  // namespace openmsa::cuda::sm90::prefill
