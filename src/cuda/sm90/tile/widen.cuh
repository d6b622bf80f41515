// Keys and values in e4m3 become tiles of 16-bit elements in shared memory, in place.
//
// The copy engine leaves the e4m3 numbers of a tile [kBlock][kDim] behind the tile's first panel of 64 channels. With
// 128 channels that is the place of the second panel: rows of 128 bytes either way, so that a group of eight rows
// becomes 16 bits wide where it lies and in the first panel, apart from all other groups. With 64 channels there is no
// second panel, and the e4m3 numbers have that memory to themselves.
//
//   byte of the tile          before                                   after
//   [0, kBlock * 128)         shares of values, 32 bytes per 1024      channels [0, 64)
//   [kBlock * 128, ...)       e4m3                                     channels [64, 128)
#pragma once

#include <cstdint>

#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/from_e4m3.cuh"

namespace openmsa::cuda::sm90 {

template <int kDim, int kBlock>
struct WidenedTile {
  static constexpr int kPanelBytes = kBlock * 128;
  static constexpr int kBytes = kPanelBytes + kBlock * kDim;
  static constexpr int kGroups = kBlock / 8;

  /// Where the copy engine leaves e4m3.
  template <class Cached>
  static __device__ __forceinline__ Cached* source(void* tile) {
    return reinterpret_cast<Cached*>(static_cast<char*>(tile) + kPanelBytes);
  }

  /// The factor of a row before it is widened: a number in fp16, twice.
  static __device__ __forceinline__ std::uint32_t& share(void* tile, int row) {
    return *reinterpret_cast<std::uint32_t*>(static_cast<char*>(tile) + row / 8 * 1024 + row % 8 * 4);
  }

  /// Groups of eight rows `first`, `first + step`, ..., by a warp; kHasShares: fp16 numbers times the shares of their
  /// rows. Lane i has 16 channels of row i % 8 from 16 * (i / 8) on, of each panel: no two of eight lanes that access
  /// shared memory together meet in a bank.
  template <class Wide, bool kHasShares>
  static __device__ __forceinline__ void widen(void* tile, int first, int step, int lane) {
    constexpr int kPanels = kDim / kPanelChannels;
    const int row = lane % 8, chunk = lane / 8;
    const int swizzle = kDim == 128 ? row : row / 2;  // of rows of 128 and of 64 bytes
    char* const to = static_cast<char*>(tile) + row * 128;
    const char* const from = static_cast<char*>(tile) + kPanelBytes + row * kDim;
#pragma unroll 1
    for (int group = first; group < kGroups; group += step) {
      uint4 packed[kPanels];
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        packed[panel] = *reinterpret_cast<const uint4*>(from + group * 8 * kDim + ((chunk + 4 * panel) ^ swizzle) * 16);
      }
      const std::uint32_t factor = kHasShares ? share(tile, group * 8 + row) : 0;
      __syncwarp();  // all lanes have read what is overwritten now
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        const std::uint32_t words[4] = {packed[panel].x, packed[panel].y, packed[panel].z, packed[panel].w};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4 wide = {
              widen_two<Wide, kHasShares, 0>(words[2 * half], factor),
              widen_two<Wide, kHasShares, 1>(words[2 * half], factor),
              widen_two<Wide, kHasShares, 0>(words[2 * half + 1], factor),
              widen_two<Wide, kHasShares, 1>(words[2 * half + 1], factor),
          };
          *reinterpret_cast<uint4*>(to + panel * kPanelBytes + group * 1024 + ((2 * chunk + half) ^ row) * 16) = wide;
        }
      }
    }
  }

 private:
  /// The lower or the upper two numbers of a word.
  template <class Wide, bool kHasShares, int kUpper>
  static __device__ __forceinline__ std::uint32_t widen_two(std::uint32_t four, std::uint32_t factor) {
    std::uint32_t wide = from_e4m3<Wide, kUpper>(four);
    if constexpr (kHasShares) {
      static_assert(std::is_same_v<Wide, cutlass::half_t>);
      const __half2 product =
          __hmul2(*reinterpret_cast<const __half2*>(&wide), *reinterpret_cast<const __half2*>(&factor));
      wide = *reinterpret_cast<const std::uint32_t*>(&product);
    }
    return wide;
  }
};

}  // namespace openmsa::cuda::sm90
