// Softmax in units of log2, online: scores come tile by tile, and what was added up before is rescaled.
#pragma once

#include "cuda/sm80/ptx/math.cuh"
#include "cuda/sm80/tile/quad.cuh"

namespace openmsa::cuda::sm80 {

/// -inf - -inf must not appear in an exponent: the shift of a row that has seen nothing is 0.
__device__ __forceinline__ float finite_shift(float x) { return x == -INFINITY ? 0 : x; }

/// The running maximum is raised to `score` where that is larger by more than `slack`. `shift` is what to subtract from
/// scores from now on; returns the factor, exp2(old max - shift), for what was added up before: 1 where that is nothing.
__device__ __forceinline__ float raise_max(float& max, float score, float& shift, float slack = 0) {
  const float old_max = max;
  if (score > old_max + slack) max = score;
  shift = finite_shift(max);
  return old_max == -INFINITY ? 1 : exp2_approx(old_max - shift);
}

}  // namespace openmsa::cuda::sm80
