// The queries of 8 or 16 columns as the right operand of mma.sync, read from global memory into registers.
#pragma once

#include "core/row_scale.h"
#include "cuda/sm90/tile/e4m3.cuh"
#include "cuda/sm90/tile/warp_mma.cuh"

namespace openmsa::cuda::sm90 {

/// fragments[step][2 n + half]: column 8 n + g, bytes 32 step + 16 half + 4 t.
template <class Element, int kSteps, int kColumnTiles>
struct QueryFragments {
  std::uint32_t fragments[kSteps][2 * kColumnTiles];

  /// offset(column): of the column's first element.
  template <class Offset>
  __device__ __forceinline__ void load(const Element* q, int lane, Offset offset) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const Element* const column = q + offset(8 * n + lane / 4) + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 2 * kSteps; ++i) {
        fragments[i / 2][2 * n + i % 2] = *reinterpret_cast<const std::uint32_t*>(column + i * 8);
      }
    }
  }
};

/// Rounded to e4m3, each column by 448 over its largest magnitude: a product's sums are too large by that factor,
/// which is the same for all keys and no matter for their order.
template <int kSteps, int kColumnTiles>
struct QueryFragments<cutlass::float_e4m3_t, kSteps, kColumnTiles> {
  std::uint32_t fragments[kSteps][2 * kColumnTiles];

  template <class Query, class Offset>
  __device__ __forceinline__ void load(const Query* q, int lane, Offset offset) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
      const Query* const column = q + offset(8 * n + lane / 4) + lane % 4 * 4;
      float values[2 * kSteps][4];
      float largest = 0;
#pragma unroll
      for (int i = 0; i < 2 * kSteps; ++i) {
        const uint2 packed = *reinterpret_cast<const uint2*>(column + i * 16);
        const Query* const four = reinterpret_cast<const Query*>(&packed);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          values[i][c] = static_cast<float>(four[c]);
          largest = fmaxf(largest, fabsf(values[i][c]));
        }
      }
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const float scale = core::row_scale(largest).to_fp8;
#pragma unroll
      for (int i = 0; i < 2 * kSteps; ++i) {
#pragma unroll
        for (float& value : values[i]) value *= scale;
        fragments[i / 2][2 * n + i % 2] = to_e4m3(values[i]);
      }
    }
  }
};

}  // namespace openmsa::cuda::sm90
