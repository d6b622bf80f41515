// The order of scores as the order of integers, and candidates made of a score and its kv_block.
#pragma once

#include <climits>
#include <cstdint>

#include "cuda/common/topk_key.h"

namespace openmsa::cuda {

/// An integer that orders scores: NaN below -inf, -0 equal to +0, both above INT_MIN.
__device__ __forceinline__ std::int32_t score_key(float score) {
  constexpr std::int32_t kNan = INT_MIN + 1;
  const std::int32_t bits = __float_as_int(score + 0.0f);
  return isnan(score) ? kNan : (bits < 0 ? bits ^ INT_MAX : bits);
}

__device__ __forceinline__ Ranked rank_of_key(std::int32_t key, std::int32_t block) {
  return Ranked{key} << 32 | static_cast<std::uint32_t>(~block);
}
__device__ __forceinline__ Ranked rank_of(float score, std::int32_t block) {
  return rank_of_key(score_key(score), block);
}
__device__ __forceinline__ std::int32_t block_of(Ranked ranked) { return ~static_cast<std::int32_t>(ranked); }

/// score_key of a candidate's score.
__device__ __forceinline__ std::int32_t key_of(Ranked ranked) { return static_cast<std::int32_t>(ranked >> 32); }

/// A score that compares like the one in `ranked`; a NaN gives a NaN.
__device__ __forceinline__ float score_of(Ranked ranked) {
  const std::int32_t key = key_of(ranked);
  return __int_as_float(key < 0 ? key ^ INT_MAX : key);
}

}  // namespace openmsa::cuda
