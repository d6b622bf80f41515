// Keys and values of a cache as operands of mma.sync: as they are, or e4m3 turned into fp16 on the way, which holds it
// exactly and takes one instruction for two numbers, where bf16 takes four. bf16 queries then become fp16 too: each row
// times the power of two that brings its largest magnitude to [2^14, 2^15), so that nothing is lost but what lies 2^-29
// and more below it, where fp32 sums round. e4m3 comes in fragments of 4 neighbouring channels per lane where 16-bit elements come in twice
// 2, so channels meet in another order, which queries and results follow.
#pragma once

#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>

#include "cuda/sm90/tile/from_e4m3.cuh"
#include "cuda/sm90/tile/warp_mma.cuh"

namespace openmsa::cuda::sm90::decode {

/// Bits of key 2 t (low half) and key 2 t + 1 (high half) of 16 keys from `key` on, the upper eight with `upper`, that
/// stay: those of keys below `end`.
__device__ __forceinline__ std::uint32_t kept_keys(int key, int end, bool upper, int lane) {
  const int first = key + (upper ? 8 : 0) + lane % 4 * 2;
  return (first < end ? 0xffffu : 0u) | (first + 1 < end ? 0xffff0000u : 0u);
}

/// Two numbers as the products want them, the first in the lower half.
template <class Product>
__device__ __forceinline__ std::uint32_t pack_two(float low, float high) {
  const cutlass::NumericArrayConverter<Product, float, 2> convert;
  cutlass::Array<float, 2> pair;
  pair[0] = low;
  pair[1] = high;
  const auto rounded = convert(pair);
  return reinterpret_cast<const std::uint32_t&>(rounded);
}

/// 16-bit elements of the queries' type.
template <class Element, class Cached, int kKeys, int kDim>
struct CachedKeys {
  using Tile = SwizzledTile<kKeys, kDim * 2>;
  using Product = Element;
  static constexpr float kLift = 0;
  static constexpr int kColumnTiles = kDim / 8;

  /// Channel of a lane's first element of step `step` of q, and of those of the upper half.
  static __device__ __forceinline__ int query_channel(int step, bool upper, int lane) {
    return step * 16 + (upper ? 8 : 0) + lane % 4 * 2;
  }
  /// Stores this lane's channels of accumulator row `half`, times `factor`, in a row of channels.
  static __device__ __forceinline__ void store_values(const float (&o)[kColumnTiles][4], int half, float factor,
                                                      float* row, int lane) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const float2 two = {o[n][half * 2] * factor, o[n][half * 2 + 1] * factor};
      *reinterpret_cast<float2*>(row + n * 8 + lane % 4 * 2) = two;
    }
  }

  /// s[0], s[1] += q k^T for keys [key, key + 8) and [key + 8, key + 16).
  static __device__ __forceinline__ void add_scores(const char* k, int key, const std::uint32_t (&q)[kDim / 16][4],
                                                    int lane, float (&s0)[4], float (&s1)[4]) {
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      std::uint32_t b[4];
      Tile::load(k, key, step * kStepBytes, lane, b);
      warp_mma<Element>(s0, q[step], b[0], b[2]);
      warp_mma<Element>(s1, q[step], b[1], b[3]);
    }
  }

  /// o += p v for keys [key, key + 16), of which those from `end` on count as zeros.
  static __device__ __forceinline__ void add_values(const char* v, int key, int end, const std::uint32_t (&p)[4],
                                                    int lane, float (&o)[kColumnTiles][4]) {
    const std::uint32_t lower = kept_keys(key, end, false, lane), upper = kept_keys(key, end, true, lane);
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
      std::uint32_t b[4];
      Tile::load_transposed(v, key, n * 16, lane, b);
      warp_mma<Element>(o[n], p, b[0] & lower, b[1] & upper);
      warp_mma<Element>(o[n + 1], p, b[2] & lower, b[3] & upper);
    }
  }
};

template <class Element, int kKeys, int kDim>
struct CachedKeys<Element, cutlass::float_e4m3_t, kKeys, kDim> {
  using Tile = SwizzledTile<kKeys, kDim>;
  using Product = cutlass::half_t;
  static constexpr float kLift = 15;  // probabilities are 2^15 times as large: fp16 keeps those down to 2^-39 then
  static constexpr int kColumnTiles = kDim / 8;

  static __device__ __forceinline__ int query_channel(int step, bool upper, int lane) {
    return step * 16 + lane % 4 * 4 + (upper ? 2 : 0);
  }
  static __device__ __forceinline__ void store_values(const float (&o)[kColumnTiles][4], int half, float factor,
                                                      float* row, int lane) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {  // even channels, odd ones
      const float4 four = {o[n][half * 2] * factor, o[n + 1][half * 2] * factor, o[n][half * 2 + 1] * factor,
                           o[n + 1][half * 2 + 1] * factor};
      *reinterpret_cast<float4*>(row + n * 8 + lane % 4 * 4) = four;
    }
  }

  static __device__ __forceinline__ void add_scores(const char* k, int key, const std::uint32_t (&q)[kDim / 16][4],
                                                    int lane, float (&s0)[4], float (&s1)[4]) {
#pragma unroll
    for (int step = 0; step < kDim / 32; ++step) {
      std::uint32_t b[4];
      Tile::load(k, key, step * kStepBytes, lane, b);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t first = b[2 * half], second = b[2 * half + 1];
        warp_mma<Product>(s0, q[2 * step + half], from_e4m3<Product>(first), from_e4m3<Product, 1>(first));
        warp_mma<Product>(s1, q[2 * step + half], from_e4m3<Product>(second), from_e4m3<Product, 1>(second));
      }
    }
  }

  /// A lane gets two keys' channels 2 g and 2 g + 1: the even channels of 16 make one column tile, the odd ones
  /// another.
  static __device__ __forceinline__ void add_values(const char* v, int key, int end, const std::uint32_t (&p)[4],
                                                    int lane, float (&o)[kColumnTiles][4]) {
    const std::uint32_t lower = kept_keys(key, end, false, lane), upper = kept_keys(key, end, true, lane);
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 4) {
      std::uint32_t b[4];
      Tile::load_transposed(v, key, n * 8, lane, b);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t low = b[2 * half] & lower, high = b[2 * half + 1] & upper;
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const int pick = odd ? 0x31 : 0x20;  // bytes of one channel, of both keys
          warp_mma<Product>(o[n + 2 * half + odd], p, from_e4m3<Product>(__byte_perm(low, 0, pick)),
                            from_e4m3<Product>(__byte_perm(high, 0, pick)));
        }
      }
    }
  }
};

}  // namespace openmsa::cuda::sm90::decode
