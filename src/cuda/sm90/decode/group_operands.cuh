// Operands of a warpgroup's products with a key tile of 64 keys (group_attention.cuh), and how they come from a cache:
// 16-bit elements as they are, e4m3 as fp16.
#pragma once

#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>
#include <type_traits>

#include "cuda/common/math.h"
#include "cuda/sm90/decode/cached_keys.cuh"
#include "cuda/sm90/tile/index_queries.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace openmsa::cuda::sm90::decode {

inline constexpr int kGroupThreads = 128;

template <class Element, class Cached_, int kDim>
struct GroupOperands {
  using Cached = Cached_;
  static constexpr bool kIsQuantized = sizeof(Cached) == 1;
  using Product = std::conditional_t<kIsQuantized, cutlass::half_t, Element>;
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Cached));
  using Tile = SwizzledTile<kTileKeys, kRowBytes>;
  static constexpr int kChannelTiles = kDim / 64;
  static constexpr int kKeySteps = kTileKeys / 16;
  static constexpr int kWarpChannels = kDim / 4;

  template <cute::GMMA::Major kRight>
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<Product, Product, float, cute::Shape<cute::_64, cute::_16, cute::_16>,
                                 cute::GMMA::Major::K, kRight>()));
  using ScoreMma = Mma<cute::GMMA::Major::K>;
  using ValueMma = Mma<cute::GMMA::Major::MN>;
  using LayoutQ = decltype(cute::tile_to_shape(cute::GMMA::Layout_K_SW128_Atom<Product>{},
                                               cute::Shape<cute::_16, cute::Int<kDim>>{}));
  // [head][key] of a warp's 16 keys; the heads of a key lie side by side.
  using LayoutWeights = decltype(cute::tile_to_shape(cute::GMMA::Layout_MN_SW32_Atom<Product>{},
                                                     cute::Shape<cute::_16, cute::_16>{}));
  using Keys = LeftOperand<Product, kDim>;         // of a warp's 16 keys
  using Values = LeftOperand<Product, kTileKeys>;  // of 16 of a warp's channels
  using Output = decltype(cute::partition_fragment_C(ValueMma{}, cute::Shape<cute::_64, cute::_16>{}));

  /// Weights of the 16 keys of step `step`, where k of warp `step` was.
  static __device__ __forceinline__ auto weights(char* k, int step) {
    return cute::make_tensor(cute::make_smem_ptr(reinterpret_cast<Product*>(k + step * 16 * Tile::kPanelBytes)),
                             LayoutWeights{});
  }

  /// Channels of a lane in channel tile m: this one and the next of e4m3, the one 8 after it in 16 bits.
  static __device__ __forceinline__ int first_channel(int m, int warp, int lane) {
    return warp * kWarpChannels + m * 16 + lane / 4 * (kIsQuantized ? 2 : 1);
  }
  /// Stores a head's two channels of a lane, the first of them at `to`.
  static __device__ __forceinline__ void store_pair(float* to, float first, float second) {
    if constexpr (kIsQuantized) {
      *reinterpret_cast<float2*>(to) = make_float2(first, second);
    } else {
      to[0] = first;
      to[8] = second;
    }
  }

  /// Of e4m3 a thread has channels 4 t to 4 t + 3 of every 16, which the product takes as 2 t, 2 t + 1 and 2 t + 8,
  /// 2 t + 9 (store_as_widened).
  static __device__ __forceinline__ void load_keys(const char* k, int warp, int lane, Keys& keys) {
    auto words = cute::recast<std::uint32_t>(keys);
#pragma unroll
    for (int step = 0; step < kRowBytes / kStepBytes; ++step) {
      std::uint32_t b[4];
      Tile::load(k, warp * 16, step * kStepBytes, lane, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kIsQuantized) {  // i: lower keys, upper keys of 16 channels; the same of the next 16
          const int at = (step * 2 + i / 2) * 4 + i % 2;
          words(at) = from_e4m3<Product>(b[i]);
          words(at + 2) = from_e4m3<Product, 1>(b[i]);
        } else {
          words(step * 4 + i) = b[i];
        }
      }
    }
  }

  /// v^T of a warp's channels.
  static __device__ __forceinline__ void load_values(const char* v, int warp, int lane,
                                                     Values (&values)[kChannelTiles]) {
    constexpr int kWarpBytes = kWarpChannels * static_cast<int>(sizeof(Cached));
    constexpr int kLoads = kTileKeys * kWarpBytes / 512;
    constexpr int kLoadKeys = kWarpBytes < 32 ? 32 : 16;  // of four matrices of 8 keys and 16 bytes
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int key = load % (kTileKeys / kLoadKeys) * kLoadKeys;
      const int byte = warp * kWarpBytes + load / (kTileKeys / kLoadKeys) * 32;
      const int row = kLoadKeys == 32 ? lane : lane % 16, column = kLoadKeys == 32 ? 0 : lane / 16 * 16;
      std::uint32_t b[4];
      Tile::load_matrices_transposed(v, key + row, byte + column, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int first_key = key + (kLoadKeys == 32 ? i : i % 2) * 8, step = first_key / 16, upper = first_key / 8 % 2;
        const int columns = load / (kTileKeys / kLoadKeys) * 2 + (kLoadKeys == 32 ? 0 : i / 2);  // 16 bytes of channels
        if constexpr (kIsQuantized) {  // even channels, odd ones: rows g and g + 8 of the operand
          auto words = cute::recast<std::uint32_t>(values[columns]);
          const std::uint32_t by_channel = __byte_perm(b[i], 0, 0x3120);
          words(step * 4 + upper * 2) = from_e4m3<Product>(by_channel);
          words(step * 4 + upper * 2 + 1) = from_e4m3<Product, 1>(by_channel);
        } else {
          auto words = cute::recast<std::uint32_t>(values[columns / 2]);
          words(step * 4 + upper * 2 + columns % 2) = b[i];
        }
      }
    }
  }

  /// Zeros for keys from `end` on, whatever lies there.
  static __device__ __forceinline__ void hide_values(int end, int lane, Values (&values)[kChannelTiles]) {
#pragma unroll
    for (int i = 0; i < kTileKeys / 8; ++i) {
      const std::uint32_t kept = kept_keys(i * 8, end, false, lane);
#pragma unroll
      for (Values& of_tile : values) {
        auto words = cute::recast<std::uint32_t>(of_tile);
        words(i * 2) &= kept;
        words(i * 2 + 1) &= kept;
      }
    }
  }
};

/// What the warps of a group share beside the stages, on a 1024-byte boundary.
template <class Operands>
struct GroupScratch {
  typename Operands::Product q[cute::cosize_v<typename Operands::LayoutQ>];
  alignas(16) float tops[16][4];  // of a head's scores in a key tile, of each warp
  float units[16];                // what one of q counts
};

}  // namespace openmsa::cuda::sm90::decode
