// What the four lanes of a quad, which share the rows of a product, exchange.
#pragma once

#include "cuda/common/math.h"

namespace openmsa::cuda::sm80 {

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}

/// words[p] of lane t becomes words[t] of lane p: from 16 bytes of one chunk to one word of each of four chunks, and
/// back.
__device__ __forceinline__ void transpose_quad(std::uint32_t (&words)[4], int lane) {
  const bool is_odd = lane & 1, is_upper = lane & 2;
  std::uint32_t x = __shfl_xor_sync(kFullWarp, is_odd ? words[0] : words[1], 1);
  std::uint32_t y = __shfl_xor_sync(kFullWarp, is_odd ? words[2] : words[3], 1);
  words[0] = is_odd ? x : words[0];
  words[1] = is_odd ? words[1] : x;
  words[2] = is_odd ? y : words[2];
  words[3] = is_odd ? words[3] : y;
  x = __shfl_xor_sync(kFullWarp, is_upper ? words[0] : words[2], 2);
  y = __shfl_xor_sync(kFullWarp, is_upper ? words[1] : words[3], 2);
  words[0] = is_upper ? x : words[0];
  words[2] = is_upper ? words[2] : x;
  words[1] = is_upper ? y : words[1];
  words[3] = is_upper ? words[3] : y;
}

}  // namespace openmsa::cuda::sm80
