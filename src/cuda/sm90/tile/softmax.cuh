// Softmax in units of log2, online: scores come block by block, and what was added up before is rescaled.
#pragma once

#include <cute/tensor.hpp>

#include "cuda/common/math.h"
#include "cuda/sm90/ptx/compiler.cuh"
#include "cuda/sm90/ptx/math.cuh"

namespace openmsa::cuda::sm90 {

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}

/// -inf - -inf must not appear in an exponent: the shift of a row that has seen nothing is 0.
__device__ __forceinline__ float finite_shift(float x) { return x == -INFINITY ? 0 : x; }

/// One step of an online softmax: the running maximum is raised to `score` where that is larger. `shift` is what to
/// subtract from scores from now on; returns the factor, exp2(old max - shift), for what was added up before.
__device__ __forceinline__ float raise_max(float& max, float score, float& shift) {
  const float new_max = fmaxf(max, score);
  shift = finite_shift(new_max);
  const float alpha = exp2_approx(max - shift);
  max = new_max;
  return alpha;
}

/// How Softmax raises its maximum: to the new one, always.
struct RaiseAlways {
  __device__ __forceinline__ float operator()(float& max, float score, float& shift) const {
    return raise_max(max, score, shift);
  }
};

/// Only where a score is larger by more than 8, so that what was added up before is seldom rescaled. Probabilities then
/// grow up to 2^8, which 16-bit elements hold as well as those up to 1.
struct RaiseLazily {
  static constexpr float kSlack = 8;

  __device__ __forceinline__ float operator()(float& max, float score, float& shift) const {
    return raise_max(max, score > max + kSlack ? score : max, shift);
  }
};

/// Running softmax of a thread's two rows in units of log2: max is softmax_scale * log2(e) * score, sum counts this
/// thread's columns. Both rows are worked on side by side: a warp has little else to hide the latency of a chain.
struct Softmax {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};

  /// Turns s into probabilities and returns the factors for what was accumulated before.
  template <class Tile, class Raise = RaiseAlways>
  __device__ __forceinline__ void update(typename Tile::Scores& s, float scale_log2, float (&alpha)[2],
                                         Raise raise = {}) {
    using namespace cute;
    float top[2][2], shift[2];
    CUTE_UNROLL
    for (int n = 0; n < Tile::kScoreColumns; ++n) {
      CUTE_UNROLL
      for (int row = 0; row < 2; ++row) {
        CUTE_UNROLL
        for (int c = 0; c < 2; ++c) {
          const float x = s(make_coord(c, row, n), 0, 0);
          top[row][c] = n == 0 ? x : fmaxf(top[row][c], x);
        }
      }
    }
    CUTE_UNROLL
    for (int row = 0; row < 2; ++row) {
      alpha[row] = raise(max[row], quad_max(fmaxf(top[row][0], top[row][1])) * scale_log2, shift[row]);
    }
    float part[2][2] = {{sum[0] * alpha[0], 0}, {sum[1] * alpha[1], 0}};
    CUTE_UNROLL
    for (int n = 0; n < Tile::kScoreColumns; ++n) {
      CUTE_UNROLL
      for (int row = 0; row < 2; ++row) {
        CUTE_UNROLL
        for (int c = 0; c < 2; ++c) {
          float& x = s(make_coord(c, row, n), 0, 0);
          x = exp2_approx(fmaf(x, scale_log2, -shift[row]));
          part[row][c] += x;
        }
      }
    }
    sum[0] = part[0][0] + part[0][1];
    sum[1] = part[1][0] + part[1][1];
  }

  /// Keeps the work of update() in front of what follows, a wait for a product: the assembler would move it past the
  /// wait, and have nothing left to do beside the product.
  __device__ __forceinline__ void finish() const { keep_before(sum[0] + sum[1]); }
};

}  // namespace openmsa::cuda::sm90
