// Products of index_q with index keys. Keys of 16 bits meet queries as they are. e4m3 keys become fp16 in registers, and
// queries fp16 before that, exactly what `rounding` makes of them:
//
//   SCALED, CAST   rounded to e4m3, every number of which fp16 holds
//   EXACT          times a power of two for each row (tile/narrow.cuh)
//
// What a row was multiplied by does not change the order of its scores; block_scores take it out again.
//
// A lane has channels 2 t, 2 t + 1 of every 8 of a 16-bit key, and 4 t to 4 t + 3 of every 16 of an e4m3 key; queries
// follow.
#pragma once

#include "core/row_scale.h"
#include "cuda/sm80/select/params.h"
#include "cuda/sm80/tile/element.cuh"
#include "cuda/sm80/tile/narrow.cuh"
#include "cuda/sm80/tile/row_fragment.cuh"
#include "cuda/sm80/tile/shared_tile.cuh"

namespace openmsa::cuda::sm80::select {

/// Cached: of the keys; Product: of both in the product.
template <class Cached_, int kDim_>
struct IndexProduct {
  using Cached = Cached_;
  static constexpr int kDim = kDim_;
  static constexpr bool kIsQuantized = sizeof(Cached) == 1;
  using Product = std::conditional_t<kIsQuantized, __half, Cached>;
  static constexpr int kSteps = kDim / 16;
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Cached));
  using Tile = SharedTile<kRowBytes>;

  /// (query, head) row as this thread's row `half` of a; all lanes call it. Returns what a number of it counts.
  static __device__ __forceinline__ float load_query(const SelectParams& p, std::int64_t q_row, int head, int half,
                                                     std::uint32_t (&a)[kSteps][4], int lane) {
    const std::int64_t at = q_row * p.index_q.strides[0] + head * p.index_q.strides[1];
    if constexpr (!kIsQuantized) {
      load_row<kDim>(static_cast<const Cached*>(p.index_q.data) + at, half, a, lane);
      return 1;
    } else {
      float values[kSteps][4];
      read_row(p, at, values, lane);
      float factor = 1, unit = 1, amax = 0;
      if (!p.index_q.is_e4m3 && p.index_q.rounding != OPENMSA_INDEX_Q_CAST) {
#pragma unroll
        for (int i = 0; i < 4 * kSteps; ++i) amax = fmaxf(amax, fabsf(values[i / 4][i % 4]));
        amax = quad_max(amax);
        const bool is_exact = p.index_q.rounding == OPENMSA_INDEX_Q_EXACT;
        const HalfUnit narrow(amax);
        const core::RowScale scale = core::row_scale(amax);
        factor = is_exact ? narrow.factor : scale.to_fp8;
        unit = is_exact ? narrow.unit : scale.from_fp8;
      }
      const bool rounds = p.index_q.rounding != OPENMSA_INDEX_Q_EXACT;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (float& value : values[step]) value = rounds ? round_to_e4m3(value * factor) : value * factor;
        a[step][half] = pack<Product>(values[step][0], values[step][1]);
        a[step][2 + half] = pack<Product>(values[step][2], values[step][3]);
      }
      return unit;
    }
  }

  /// c += a k^T for 16 kGroups keys from row `key` of a tile on, two column tiles for each 16; kProducts tiles of 16
  /// query rows meet the same keys.
  template <int kGroups, int kProducts>
  static __device__ __forceinline__ void add(const std::uint32_t (&a)[kProducts][kSteps][4], std::uint32_t tile,
                                             int key, float (&c)[kGroups][kProducts][2][4], int lane) {
#pragma unroll
    for (int step = 0; step < kSteps; step += kTogether) {
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        std::uint32_t b[kTogether][4];
        load_keys(tile, key + group * 16, step, b, lane);
#pragma unroll
        for (int i = 0; i < kTogether * kProducts; ++i) {
          const int m = i % kProducts, next = i / kProducts;
          multiply_add<Product>(c[group][m][0], a[m][step + next], b[next][0], b[next][1]);
          multiply_add<Product>(c[group][m][1], a[m][step + next], b[next][2], b[next][3]);
        }
      }
    }
  }

  static constexpr int kTogether = kIsQuantized ? 2 : 1;  // steps of one ldmatrix
  /// Steps [step, step + kTogether) of the 16 keys from row `key` on as `b`: columns [0, 8) in b[.][0], b[.][1], the
  /// others in b[.][2], b[.][3].
  static __device__ __forceinline__ void load_keys(std::uint32_t tile, int key, int step,
                                                   std::uint32_t (&b)[kTogether][4], int lane) {
    if constexpr (!kIsQuantized) {
      Tile::load_columns(tile, key, 2 * step, lane, b[0]);
    } else {
      std::uint32_t packed[4];
      Tile::load_columns(tile, key, step, lane, packed);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        b[i % 2][i / 2 * 2] = half_from_e4m3(packed[i]);
        b[i % 2][i / 2 * 2 + 1] = half_from_e4m3(packed[i] >> 16);
      }
    }
  }

 private:
  /// Channels 16 step + 4 t to 16 step + 4 t + 3 of a row, of whatever type it is.
  static __device__ __forceinline__ void read_row(const SelectParams& p, std::int64_t at, float (&values)[kSteps][4],
                                                  int lane) {
    const int channel = lane % 4 * 4;
    if (p.index_q.is_e4m3) {
      const auto* const row = static_cast<const char*>(p.index_q.data) + at + channel;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const auto four = *reinterpret_cast<const std::uint32_t*>(row + step * 16);
        const float2 low = unpack<__half>(half_from_e4m3(four)), high = unpack<__half>(half_from_e4m3(four >> 16));
        values[step][0] = low.x, values[step][1] = low.y, values[step][2] = high.x, values[step][3] = high.y;
      }
      return;
    }
    const auto* const row = static_cast<const std::uint16_t*>(p.index_q.data) + at + channel;
    const bool is_half = p.q_dtype == OPENMSA_FLOAT16;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint2 four = *reinterpret_cast<const uint2*>(row + step * 16);
      const float2 low = is_half ? unpack<__half>(four.x) : unpack<__nv_bfloat16>(four.x);
      const float2 high = is_half ? unpack<__half>(four.y) : unpack<__nv_bfloat16>(four.y);
      values[step][0] = low.x, values[step][1] = low.y, values[step][2] = high.x, values[step][3] = high.y;
    }
  }
};

}  // namespace openmsa::cuda::sm80::select
