// Rows in shared memory whose 16-byte chunks are swizzled, so that the eight rows that ldmatrix reads at once meet in no
// bank: chunk c of row r lies at chunk c ^ (r % 8), of rows of 64 bytes at c ^ (r / 2 % 4).
#pragma once

#include "cuda/sm80/ptx/async_copy.cuh"
#include "cuda/sm80/ptx/matrix.cuh"

namespace openmsa::cuda::sm80 {

/// Of a tile in shared memory, bytes: the place of a chunk is then a matter of its address's low bits.
inline constexpr int kTileAlignment = 256;

template <int kRowBytes_>
struct SharedTile {
  static constexpr int kRowBytes = kRowBytes_;
  static constexpr int kChunks = kRowBytes / 16;
  static_assert(kRowBytes == 64 || kRowBytes == 128 || kRowBytes == 256);

  static __device__ __forceinline__ std::uint32_t offset(int row, int chunk) {
    const int swizzle = kRowBytes == 64 ? row / 2 % 4 : row % 8;
    return row * kRowBytes + (chunk ^ swizzle) * 16;
  }

  /// The chunk `rows` rows below the one at `address`, of a row whose number has no bit in common with `rows`.
  static __device__ __forceinline__ std::uint32_t below(std::uint32_t address, int rows) {
    return (address ^ (kRowBytes == 64 ? rows / 2 % 4 : rows % 8) * 16) + rows * kRowBytes;
  }

  /// Chunks `chunk` (even) and the next one of rows [row, row + 16), 8 | row, as four matrices: rows 0-7 and 8-15 of
  /// the first chunk in out[0], out[1], of the second in out[2], out[3]. That is `a` of 16 rows.
  static __device__ __forceinline__ void load(std::uint32_t tile, int row, int chunk, int lane,
                                              std::uint32_t (&out)[4]) {
    load_matrices((tile + row * kRowBytes + offset(lane % 16, lane / 16)) ^ chunk * 16, out);
  }

  /// The same with both chunks of rows 0-7 in out[0], out[1], of rows 8-15 in out[2], out[3]: `b` of columns
  /// [row, row + 8) and of the eight after them. Products want the two words of `b` side by side, and get them by moves
  /// where they are not.
  static __device__ __forceinline__ void load_columns(std::uint32_t tile, int row, int chunk, int lane,
                                                      std::uint32_t (&out)[4]) {
    load_matrices((tile + row * kRowBytes + offset(lane / 16 * 8 + lane % 8, lane / 8 % 2)) ^ chunk * 16, out);
  }

  /// The matrices of load() transposed, rows being k: `b` of the first chunk's 8 columns of 2 bytes in out[0], out[1], of
  /// the second's in out[2], out[3].
  static __device__ __forceinline__ void load_transposed(std::uint32_t tile, int row, int chunk, int lane,
                                                         std::uint32_t (&out)[4]) {
    load_matrices_transposed((tile + row * kRowBytes + offset(lane % 16, lane / 16)) ^ chunk * 16, out);
  }
};

}  // namespace openmsa::cuda::sm80
