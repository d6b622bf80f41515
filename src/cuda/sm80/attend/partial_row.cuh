// A row of a partial result, [kDim] in 16 bits, in the order in which accumulators hold it: every lane of a quad moves
// its columns 16 bytes at a time.
#pragma once

#include "cuda/sm80/attend/key_product.cuh"

namespace openmsa::cuda::sm80::attend {

template <class Product>
struct PartialRow {
  using Element = typename Product::Element;

  static __device__ __forceinline__ std::int64_t chunk(std::int32_t row, int i, int lane) {
    return std::int64_t{row} * (Product::kDim / 8) + i + lane % 4;
  }

  /// Row `row` of `rows` = factor * o, the thread's row `half` of the accumulator.
  static __device__ __forceinline__ void store(const typename Product::Values& o, int half, float factor, void* rows,
                                               std::int32_t row, int lane) {
    const auto two = [&](int n) { return pack<Element>(o[n][half * 2] * factor, o[n][half * 2 + 1] * factor); };
#pragma unroll
    for (int i = 0; i < Product::kColumnTiles; i += 4) {
      static_cast<uint4*>(rows)[chunk(row, i, lane)] = make_uint4(two(i), two(i + 1), two(i + 2), two(i + 3));
    }
  }

  /// o += weight * row.
  static __device__ __forceinline__ void add(typename Product::Values& o, int half, float weight, const void* rows,
                                             std::int32_t row, int lane) {
#pragma unroll
    for (int i = 0; i < Product::kColumnTiles; i += 4) {
      const uint4 packed = static_cast<const uint4*>(rows)[chunk(row, i, lane)];
      const std::uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float2 two = unpack<Element>(words[n]);
        o[i + n][half * 2] = fmaf(weight, two.x, o[i + n][half * 2]);
        o[i + n][half * 2 + 1] = fmaf(weight, two.y, o[i + n][half * 2 + 1]);
      }
    }
  }
};

}  // namespace openmsa::cuda::sm80::attend
