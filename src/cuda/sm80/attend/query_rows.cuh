// Queries of a warp of the prompt kernels, in shared memory.
#pragma once

#include "cuda/sm80/attend/key_product.cuh"
#include "cuda/sm80/attend/params.h"
#include "cuda/sm80/ptx/anew.cuh"

namespace openmsa::cuda::sm80::attend {

/// A pointer of another lane; all lanes ask together.
__device__ __forceinline__ const char* pointer_of(const char* mine, int lane) {
  return reinterpret_cast<const char*>(__shfl_sync(kFullWarp, reinterpret_cast<unsigned long long>(mine), lane));
}

/// The 32 rows of a warp. For keys of 16 bits they lie as they are and arrive by copies that nobody waits for; for e4m3
/// keys they lie as fragments of each lane, [tile][step][lane], which only the lane itself reads.
template <class Product>
class WarpQueries {
 public:
  static constexpr bool kIsAsync = !Product::kIsQuantized;
  static constexpr int kRows = 16 * kWarpTiles, kBytes = kRows * Product::kDim * 2;

  /// shared: kBytes of this warp, aligned as a tile.
  __device__ __forceinline__ WarpQueries(char* shared, int lane) : shared_(shared), lane_(lane) {}

  /// Where head `head` of row `row` of q begins.
  static __device__ __forceinline__ const char* row_of(const QueryRows& q, std::int64_t row, std::int32_t head) {
    const auto* const elements = static_cast<const typename Product::Element*>(q.data);
    return reinterpret_cast<const char*>(elements + row * q.strides[0] + head * q.strides[1]);
  }

  /// Rows on their way, of which `row` is where that of this lane begins; kIsAsync only. Nobody reads the old ones any more.
  __device__ __forceinline__ void start(const char* row) const {
    constexpr int kAtOnce = 32 / Tile::kChunks;
    const int at = lane_ / Tile::kChunks, chunk = lane_ % Tile::kChunks;
    const std::uint32_t to = shared_address(shared_) + Tile::offset(at, chunk);
#pragma unroll
    for (int from = 0; from < kRows; from += kAtOnce) {
      async_copy_16(Tile::below(to, from), pointer_of(row, from + at) + chunk * 16, true);
    }
  }

  /// The same for e4m3 keys. Multiplies scale[i] by what a number of this thread's row i counts.
  __device__ __forceinline__ void put(const char* row, float (&scale)[2 * kWarpTiles]) const {
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m) {
      typename Product::Queries rows;
#pragma unroll
      for (int i = 2 * m; i < 2 * m + 2; ++i) {
        scale[i] *= Product::load_query(pointer_of(row, i * 8 + lane_ / 4), i % 2, rows, lane_);
      }
#pragma unroll
      for (int step = 0; step < Product::kSteps; ++step) {
        fragment(m, step) = make_uint4(rows[step][0], rows[step][1], rows[step][2], rows[step][3]);
      }
    }
  }

  __device__ __forceinline__ void get(int tile, int step, std::uint32_t (&a)[4]) const {
    if constexpr (kIsAsync) {
      Tile::load(anew(shared_address(shared_)), tile * 16, 2 * step, lane_, a);
    } else {
      const uint4 packed = fragment(tile, step);
      a[0] = packed.x, a[1] = packed.y, a[2] = packed.z, a[3] = packed.w;
    }
  }

 private:
  using Tile = SharedTile<Product::kDim * 2>;

  __device__ __forceinline__ uint4& fragment(int tile, int step) const {
    return reinterpret_cast<uint4*>(shared_)[(tile * Product::kSteps + step) * 32 + lane_];
  }

  char* shared_;
  int lane_;
};

}  // namespace openmsa::cuda::sm80::attend
