// A row of a partial result, [kDim] in 16-bit elements, in the order in which accumulators hold it: every lane of a
// quad moves its columns 16 bytes at a time.
//
//   chunk (c, l), 16 bytes: columns 8 n + 2 l + {0, 1} for n in [4 c, 4 c + 4), of lane l of the quad;
//   it lies at place (c ^ head) of the row's groups of four chunks: two rows side by side then differ in their banks.
#pragma once

#include "cuda/sm90/tile/attention_tile.cuh"

namespace openmsa::cuda::sm90 {

template <class Tile>
struct PartialRow {
  using Element = typename Tile::Element;
  static constexpr int kChunks = Tile::kDim / 32;  // of one lane
  static constexpr int kBytes = Tile::kDim * static_cast<int>(sizeof(Element));

  __device__ __forceinline__ static int place(int chunk, int head, int lane) {
    return ((chunk ^ (head & (kChunks - 1))) * 4 + (lane & 3)) * 8;
  }

  /// row = scale * o, the thread's row `half` of the accumulator.
  __device__ __forceinline__ static void store(const typename Tile::Values& o, int half, float scale, Element* row,
                                               int head, int lane) {
    using namespace cute;
    const cutlass::NumericArrayConverter<Element, float, 8> convert;
    CUTE_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      cutlass::Array<float, 8> values;
      CUTE_UNROLL
      for (int i = 0; i < 8; ++i) values[i] = o(make_coord(i % 2, half, 4 * chunk + i / 2), 0, 0) * scale;
      const auto rounded = convert(values);
      *reinterpret_cast<uint4*>(row + place(chunk, head, lane)) = reinterpret_cast<const uint4&>(rounded);
    }
  }

  /// o += weight * row.
  __device__ __forceinline__ static void add(typename Tile::Values& o, int half, float weight, const Element* row,
                                             int head, int lane) {
    using namespace cute;
    CUTE_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const uint4 packed = *reinterpret_cast<const uint4*>(row + place(chunk, head, lane));
      const auto& values = reinterpret_cast<const cutlass::Array<Element, 8>&>(packed);
      CUTE_UNROLL
      for (int i = 0; i < 8; ++i) {
        float& x = o(make_coord(i % 2, half, 4 * chunk + i / 2), 0, 0);
        x = fmaf(weight, static_cast<float>(values[i]), x);
      }
    }
  }
};

}  // namespace openmsa::cuda::sm90
