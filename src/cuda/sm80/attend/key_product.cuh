// Products of queries with keys and of probabilities with values, 16 rows by 16 keys at a time.
//
// Keys of 16 bits are multiplied as they are. e4m3 becomes fp16 in registers; queries in bf16 then become fp16 too
// (tile/narrow.cuh). A lane has channels 2 t, 2 t + 1 of every 8 of a 16-bit key; of e4m3 channels 4 t to 4 t + 3 of
// every 16, and accumulators of values then have even channels in one column tile and odd ones in the next.
#pragma once

#include "cuda/sm80/tile/element.cuh"
#include "cuda/sm80/tile/narrow.cuh"
#include "cuda/sm80/tile/row_fragment.cuh"
#include "cuda/sm80/tile/shared_tile.cuh"

namespace openmsa::cuda::sm80::attend {

/// Element: of q and o; Cached: of k and v.
template <class Element_, class Cached_, int kDim_>
struct KeyProduct {
  using Element = Element_;
  using Cached = Cached_;
  static constexpr int kDim = kDim_;
  static constexpr bool kIsQuantized = sizeof(Cached) == 1;
  using Product = std::conditional_t<kIsQuantized, __half, Element>;
  /// Probabilities are 2^kLift times as large: fp16 keeps those down to 2^-39 then.
  static constexpr float kLift = kIsQuantized ? 15 : 0;
  static constexpr int kSteps = kDim / 16, kColumnTiles = kDim / 8;
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Cached));
  using Tile = SharedTile<kRowBytes>;
  using Queries = std::uint32_t[kSteps][4];
  using Values = float[kColumnTiles][4];

  /// A row of q as this thread's row `half`; all lanes call it. Returns what a number of it counts.
  static __device__ __forceinline__ float load_query(const void* row, int half, Queries& q, int lane) {
    if constexpr (!kIsQuantized) {
      load_row<kDim>(row, half, q, lane);
      return 1;
    } else {
      const auto* const fours = static_cast<const uint2*>(row);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint2 four = fours[step * 4 + lane % 4];
        q[step][half] = four.x;
        q[step][2 + half] = four.y;
      }
      if constexpr (std::is_same_v<Element, Product>) {
        return 1;
      } else {
        float amax = 0;
#pragma unroll
        for (int i = 0; i < 2 * kSteps; ++i) {
          const float2 two = unpack<Element>(q[i / 2][i % 2 * 2 + half]);
          amax = fmaxf(amax, fmaxf(fabsf(two.x), fabsf(two.y)));
        }
        const HalfUnit narrow(quad_max(amax));
#pragma unroll
        for (int i = 0; i < 2 * kSteps; ++i) {
          std::uint32_t& word = q[i / 2][i % 2 * 2 + half];
          const float2 two = unpack<Element>(word);
          word = pack<Product>(two.x * narrow.factor, two.y * narrow.factor);
        }
        return narrow.unit;
      }
    }
  }

  /// s0, s1 += q k^T for keys [key, key + 8) and [key + 8, key + 16) of a tile.
  static __device__ __forceinline__ void add_scores(const Queries& q, std::uint32_t k, int key, float (&s0)[4],
                                                    float (&s1)[4], int lane) {
    if constexpr (!kIsQuantized) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        std::uint32_t b[4];
        Tile::load(k, key, 2 * step, lane, b);
        multiply_add<Product>(s0, q[step], b[0], b[2]);
        multiply_add<Product>(s1, q[step], b[1], b[3]);
      }
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; step += 2) {
        std::uint32_t b[4];
        Tile::load(k, key, step, lane, b);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const std::uint32_t first = b[2 * i], second = b[2 * i + 1];
          multiply_add<Product>(s0, q[step + i], half_from_e4m3(first), half_from_e4m3(first >> 16));
          multiply_add<Product>(s1, q[step + i], half_from_e4m3(second), half_from_e4m3(second >> 16));
        }
      }
    }
  }

  /// o += p v for keys [key, key + 16) of a tile.
  static __device__ __forceinline__ void add_values(const std::uint32_t (&p)[4], std::uint32_t v, int key, Values& o,
                                                    int lane) {
    if constexpr (!kIsQuantized) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        std::uint32_t b[4];
        Tile::load_transposed(v, key, n, lane, b);
        multiply_add<Product>(o[n], p, b[0], b[1]);
        multiply_add<Product>(o[n + 1], p, b[2], b[3]);
      }
    } else {
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 4) {
        std::uint32_t b[4];
        Tile::load_transposed(v, key, n / 2, lane, b);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const int pick = odd ? 0x31 : 0x20;  // bytes of one channel, of both keys
            multiply_add<Product>(o[n + 2 * i + odd], p, half_from_e4m3(__byte_perm(b[2 * i], 0, pick)),
                                  half_from_e4m3(__byte_perm(b[2 * i + 1], 0, pick)));
          }
        }
      }
    }
  }

  /// Stores this thread's part of accumulator row `half`, times `factor`, in a row of channels; all lanes call it, those
  /// of a quad with the same `exists`.
  static __device__ __forceinline__ void store_row(const Values& o, int half, float factor, Element* row, bool exists,
                                                   int lane) {
    const auto two = [&](int n) { return pack<Element>(o[n][half * 2] * factor, o[n][half * 2 + 1] * factor); };
    if constexpr (!kIsQuantized) {
#pragma unroll
      for (int i = 0; i < kColumnTiles; i += 4) {
        std::uint32_t words[4] = {two(i), two(i + 1), two(i + 2), two(i + 3)};
        transpose_quad(words, lane);
        if (exists) reinterpret_cast<uint4*>(row)[i + lane % 4] = make_uint4(words[0], words[1], words[2], words[3]);
      }
    } else {
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {  // even channels, odd ones
        const std::uint32_t low = pack<Element>(o[n][half * 2] * factor, o[n + 1][half * 2] * factor);
        const std::uint32_t high = pack<Element>(o[n][half * 2 + 1] * factor, o[n + 1][half * 2 + 1] * factor);
        if (exists) reinterpret_cast<uint2*>(row)[n * 2 + lane % 4] = make_uint2(low, high);
      }
    }
  }

  /// The same in fp32.
  static __device__ __forceinline__ void store_row(const Values& o, int half, float* row, int lane) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += kIsQuantized ? 2 : 1) {
      if constexpr (!kIsQuantized) {
        reinterpret_cast<float2*>(row)[n * 4 + lane % 4] = make_float2(o[n][half * 2], o[n][half * 2 + 1]);
      } else {
        reinterpret_cast<float4*>(row)[n * 2 + lane % 4] =
            make_float4(o[n][half * 2], o[n + 1][half * 2], o[n][half * 2 + 1], o[n + 1][half * 2 + 1]);
      }
    }
  }
};

}  // namespace openmsa::cuda::sm80::attend
