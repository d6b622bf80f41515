// One warp's products on tiles of swizzled rows: mma.sync of 16 x 8, fed by ldmatrix.
//
// A step takes 32 bytes of k from every row, 16 elements; lane = 4 g + t holds
//   a (16 rows):    rows g and g + 8, bytes 4 t and 16 + 4 t:    a[0] g, lower; a[1] g + 8, lower; a[2], a[3] upper
//   b (8 columns):  column g, bytes 4 t and 16 + 4 t
//   c (16 x 8):     rows g and g + 8, columns 2 t and 2 t + 1:   c[0], c[1] row g; c[2], c[3] row g + 8
#pragma once

#include <cutlass/numeric_types.h>

#include <cstdint>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/mma_sm80.hpp>

namespace openmsa::cuda::sm90 {

inline constexpr int kStepBytes = 32;

template <class Element>
struct WarpMma;
template <>
struct WarpMma<cutlass::bfloat16_t> {
  using Atom = cute::SM80_16x8x16_F32BF16BF16F32_TN;
};
template <>
struct WarpMma<cutlass::half_t> {
  using Atom = cute::SM80_16x8x16_F32F16F16F32_TN;
};

/// c += a b
template <class Element>
__device__ __forceinline__ void warp_mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                         std::uint32_t b1) {
  WarpMma<Element>::Atom::fma(c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b0, b1, c[0], c[1], c[2], c[3]);
}

/// A tile [kTileRows][kRowBytes] as the copy engine leaves it: panels of at most 128 bytes of every row, one panel
/// after the other, 16-byte chunks swizzled inside a panel.
template <int kTileRows, int kRowBytes>
struct SwizzledTile {
  static constexpr int kRows = kTileRows;
  static constexpr int kBytesPerRow = kRowBytes;
  static constexpr int kPanelBytes = kRowBytes < 128 ? kRowBytes : 128;
  static_assert(kPanelBytes == 128 || kPanelBytes == 64);

  static __device__ __forceinline__ std::uint32_t offset(int row, int byte) {
    const int chunk = byte % kPanelBytes / 16;
    const int swizzle = kPanelBytes == 128 ? row % 8 : row / 2 % 4;
    return byte / kPanelBytes * (kTileRows * kPanelBytes) + row * kPanelBytes + (chunk ^ swizzle) * 16 + byte % 16;
  }

  /// Rows [row, row + 16), bytes [byte, byte + 32): the fragment a, or b of columns [row, row + 8) in out[0], out[2]
  /// and of the eight after them in out[1], out[3].
  static __device__ __forceinline__ void load(const char* tile, int row, int byte, int lane, std::uint32_t (&out)[4]) {
    const char* const from = tile + offset(row + lane % 16, byte + lane / 16 * 16);
    cute::SM75_U32x4_LDSM_N::copy(*reinterpret_cast<const cute::uint128_t*>(from), out[0], out[1], out[2], out[3]);
  }

  /// Rows [row, row + 16) of 16 columns of 2 bytes, from `byte` on, transposed: b with the rows as k, of the first 8
  /// columns in out[0], out[1] and of the others in out[2], out[3].
  static __device__ __forceinline__ void load_transposed(const char* tile, int row, int byte, int lane,
                                                         std::uint32_t (&out)[4]) {
    load_matrices_transposed(tile, row + lane % 16, byte + lane / 16 * 16, out);
  }

  /// Four matrices of 8 rows and 16 bytes, transposed; lane i names row i % 8 of matrix i / 8 and where in it that begins.
  static __device__ __forceinline__ void load_matrices_transposed(const char* tile, int row, int byte,
                                                                  std::uint32_t (&out)[4]) {
    const auto& from = *reinterpret_cast<const cute::uint128_t*>(tile + offset(row, byte));
    cute::SM75_U16x8_LDSM_T::copy(from, out[0], out[1], out[2], out[3]);
  }
};

}  // namespace openmsa::cuda::sm90
