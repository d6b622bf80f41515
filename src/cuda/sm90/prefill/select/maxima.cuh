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

/// The largest scores of 64-row product m with a kv_block, those of columns from `first` on, in this thread's two rows:
/// among the keys that a row sees, up to limit (exclusive); NaN where none counts, so that NaN loses to every number.
template <class Config, class Accumulator>
__device__ __forceinline__ void largest_scores(const Accumulator& acc, int m, int first, const int (&limit)[2],
                                               int lane, float (&top)[2]) {
  constexpr int kColumns = Config::kBlock / 4;  // of a thread
  std::int32_t bits[2];
  bool is_exact = true;
  CUTE_UNROLL
  for (int half = 0; half < 2; ++half) {
    bits[half] = largest_bits<kColumns>([&](int i) { return held_score<Config>(acc, 2 * m + half, first, i); });
    top[half] = __int_as_float(bits[half]);
    is_exact &= is_positive_number(bits[half]) && limit[half] >= first + Config::kBlock;
  }
  if (is_exact) return;
  CUTE_UNROLL
  for (int half = 0; half < 2; ++half) {
    const bool sees_all = limit[half] >= first + Config::kBlock;
    const auto score = [&](int i) { return held_score<Config>(acc, 2 * m + half, first, i); };
    if (sees_all && bits[half] < 0) {
      top[half] = largest_negative<kColumns>(score);
    } else if (!sees_all || !is_positive_number(bits[half])) {
      top[half] = NAN;
      CUTE_UNROLL
      for (int i = 0; i < kColumns; ++i) {
        const bool is_seen = first + i / 2 * 8 + lane % 4 * 2 + i % 2 < limit[half];
        top[half] = fmaxf(top[half], is_seen ? score(i) : NAN);
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
