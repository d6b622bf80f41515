// Channels of a row between memory and registers, a few per thread.
#pragma once

#include <cstdint>

#include "cuda/common/math.h"
#include "cuda/generic/training/params.h"

namespace openmsa::cuda::generic::training {

inline constexpr int kLaneChannels = 8;  // of a thread that reads rows

/// 8 channels as they lie in memory, 16-byte aligned.
template <class Element>
struct alignas(16) Channels {
  Element x[kLaneChannels];
};

/// `x` = 8 channels from an aligned place.
template <class Element>
__device__ __forceinline__ void load_channels(const Element* from, float (&x)[kLaneChannels]) {
  const auto channels = *reinterpret_cast<const Channels<Element>*>(from);
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) x[i] = static_cast<float>(channels.x[i]);
}

/// Rounds to Element; 16 bytes at a time where rows are aligned.
template <class Element, int kChannels>
__device__ __forceinline__ void store_channels(Element* to, bool is_aligned, const float (&x)[kChannels]) {
  constexpr int kChunk = 16 / sizeof(Element);
  struct alignas(16) Chunk {
    Element x[kChunk];
  };
#pragma unroll
  for (int i = 0; i < kChannels / kChunk; ++i) {
    Chunk chunk;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) chunk.x[j] = static_cast<Element>(x[i * kChunk + j]);
    if (is_aligned) {
      reinterpret_cast<Chunk*>(to)[i] = chunk;
    } else {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) to[i * kChunk + j] = chunk.x[j];
    }
  }
}

/// Channels from `channel` on of a row of a gradient, whose dtype is Element or fp32.
template <class Element, int kChannels>
__device__ __forceinline__ void store_gradient(const GradientRows& rows, std::int64_t row, std::int32_t head,
                                               std::int32_t channel, const float (&x)[kChannels]) {
  const std::int64_t at = row * rows.strides[0] + head * rows.strides[1] + channel;
  if (rows.is_fp32) {
    store_channels(static_cast<float*>(rows.data) + at, rows.is_aligned, x);
  } else {
    store_channels(static_cast<Element*>(rows.data) + at, rows.is_aligned, x);
  }
}

/// Over neighbouring lanes, a power of two of them.
__device__ __forceinline__ float sum_over(int lanes, float x) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kFullWarp, x, distance);
  return x;
}
__device__ __forceinline__ float max_over(int lanes, float x) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, distance));
  return x;
}

/// Largest magnitude of a row of which each of `lanes` neighbouring lanes has 8 channels, over its finite numbers.
__device__ __forceinline__ float largest_finite(int lanes, const float (&x)[kLaneChannels]) {
  float largest = 0;
#pragma unroll
  for (const float value : x) largest = fmaxf(largest, isfinite(value) ? fabsf(value) : 0);
  return max_over(lanes, largest);
}

/// |x|_2 of a row of which each of `lanes` neighbouring lanes has 8 channels. Squares of the row's largest number neither
/// overflow nor vanish: it is scaled by a power of two first. Not finite where a number is not.
__device__ __forceinline__ float norm_over(int lanes, const float (&x)[kLaneChannels]) {
  float largest = 0;
#pragma unroll
  for (const float value : x) largest = fmaxf(largest, fabsf(value));
  largest = max_over(lanes, largest);
  const int exponent = min(max(__float_as_int(largest) >> 23, 1), 253);  // biased
  const float down = __int_as_float((254 - exponent) << 23), up = __int_as_float(exponent << 23);
  float squares = 0;
#pragma unroll
  for (const float value : x) squares += value * down * (value * down);
  return sqrtf(sum_over(lanes, squares)) * up;
}

}  // namespace openmsa::cuda::generic::training
