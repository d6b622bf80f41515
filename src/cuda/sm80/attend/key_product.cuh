// Products of queries with keys and of probabilities with values. Tiles of 16 rows share what is read of keys.
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

  /// s += q k^T for keys [key, key + 8 kColumns) of a tile. Rows: RegisterRows, below, or WarpQueries.
  template <class Rows, int kRowTiles, int kColumns>
  static __device__ __forceinline__ void add_scores(const Rows& q, std::uint32_t k, int key,
                                                    float (&s)[kRowTiles][kColumns][4], int lane) {
    constexpr int kTogether = kIsQuantized ? 2 : 1;  // steps of one ldmatrix
#pragma unroll
    for (int step = 0; step < kSteps; step += kTogether) {
      std::uint32_t a[kRowTiles][kTogether][4];
#pragma unroll
      for (int i = 0; i < kRowTiles * kTogether; ++i) {
        q.get(i / kTogether, step + i % kTogether, a[i / kTogether][i % kTogether]);
      }
#pragma unroll
      for (int n = 0; n < kColumns; n += 2) {
        std::uint32_t b[4];
        Tile::load_columns(k, key + n * 8, 2 * step / kTogether, lane, b);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          if constexpr (!kIsQuantized) {
            multiply_add<Product>(s[m][n], a[m][0], b[0], b[1]);
            multiply_add<Product>(s[m][n + 1], a[m][0], b[2], b[3]);
          } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              multiply_add<Product>(s[m][n + i / 2], a[m][i % 2], half_from_e4m3(b[i]), half_from_e4m3(b[i] >> 16));
            }
          }
        }
      }
    }
  }

  /// o += p v for keys [key, key + 16) of a tile.
  template <int kRowTiles>
  static __device__ __forceinline__ void add_values(const std::uint32_t (&p)[kRowTiles][4], std::uint32_t v, int key,
                                                    Values (&o)[kRowTiles], int lane) {
    if constexpr (!kIsQuantized) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        std::uint32_t b[4];
        Tile::load_transposed(v, key, n, lane, b);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          multiply_add<Product>(o[m][n], p[m], b[0], b[1]);
          multiply_add<Product>(o[m][n + 1], p[m], b[2], b[3]);
        }
      }
    } else {
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 4) {
        std::uint32_t b[4];
        Tile::load_transposed(v, key, n / 2, lane, b);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int pick = i % 2 == 0 ? 0x20 : 0x31;  // bytes of one channel, of both keys
          const std::uint32_t low = half_from_e4m3(__byte_perm(b[i / 2 * 2], 0, pick));
          const std::uint32_t high = half_from_e4m3(__byte_perm(b[i / 2 * 2 + 1], 0, pick));
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) multiply_add<Product>(o[m][n + i], p[m], low, high);
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

/// Queries of a warp in registers, kRowTiles tiles of 16 rows; WarpQueries (query_rows.cuh) has them in shared memory.
template <class Product, int kRowTiles>
struct RegisterRows {
  typename Product::Queries tiles[kRowTiles];
  __device__ __forceinline__ void get(int tile, int step, std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = tiles[tile][step][i];
  }
};

}  // namespace openmsa::cuda::sm80::attend
