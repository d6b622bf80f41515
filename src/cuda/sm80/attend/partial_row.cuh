// A row of a partial result, [kDim] in 16 bits, in the order in which accumulators hold it: every lane of a quad moves
// its columns 16 bytes at a time.
#pragma once

#include "cuda/sm80/attend/key_product.cuh"

namespace openmsa::cuda::sm80::attend {

template <class Product>
struct PartialRow {
  using Element = typename Product::Element;
  static constexpr int kChunks = Product::kDim / 8;

  /// Row `row` of `rows` = factor * o, the thread's row `half` of the accumulator.
  static __device__ __forceinline__ void store(const typename Product::Values& o, int half, float factor, void* rows,
                                               std::int32_t row, int lane) {
    const auto two = [&](int n) { return pack<Element>(o[n][half * 2] * factor, o[n][half * 2 + 1] * factor); };
#pragma unroll
    for (int i = 0; i < Product::kColumnTiles; i += 4) {
      static_cast<uint4*>(rows)[std::int64_t{row} * kChunks + i + lane % 4] =
          make_uint4(two(i), two(i + 1), two(i + 2), two(i + 3));
    }
  }

  /// Chunk `chunk` of row `row` of `rows`; it is that of lane chunk % 4 of a quad.
  static __device__ __forceinline__ uint4 chunk_of(const void* rows, std::int32_t row, int chunk) {
    return static_cast<const uint4*>(rows)[std::int64_t{row} * kChunks + chunk];
  }

  /// o += weight * chunk, of which it has the order.
  static __device__ __forceinline__ void add(const uint4& chunk, float weight, float (&o)[8]) {
    const std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float2 two = unpack<Element>(words[n]);
      o[2 * n] = fmaf(weight, two.x, o[2 * n]);
      o[2 * n + 1] = fmaf(weight, two.y, o[2 * n + 1]);
    }
  }

  /// Stores factor * o, in the order of chunk `chunk`, in a row of channels; all lanes call it, those of a quad with the
  /// same `exists` and chunks side by side.
  static __device__ __forceinline__ void store_output(const float (&o)[8], float factor, Element* row, int chunk,
                                                      bool exists, int lane) {
    const auto two = [&](int i, int j) { return pack<Element>(o[i] * factor, o[j] * factor); };
    if constexpr (!Product::kIsQuantized) {
      std::uint32_t words[4] = {two(0, 1), two(2, 3), two(4, 5), two(6, 7)};
      transpose_quad(words, lane);
      if (exists) reinterpret_cast<uint4*>(row)[chunk] = make_uint4(words[0], words[1], words[2], words[3]);
    } else if (exists) {  // even channels, odd ones
      const int first = chunk / 4 * 8 + chunk % 4;
      reinterpret_cast<uint2*>(row)[first] = make_uint2(two(0, 2), two(1, 3));
      reinterpret_cast<uint2*>(row)[first + 4] = make_uint2(two(4, 6), two(5, 7));
    }
  }
};

}  // namespace openmsa::cuda::sm80::attend
