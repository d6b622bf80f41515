// One warpgroup's attention tile: 64 query rows against one kv_block. Shared-memory layouts and the two products.
//
//   s[64][kBlock] = q k^T    (q and k from shared memory)
//   o[64][kDim]  += p v      (p from registers, v from shared memory)
//
// p and v may be of another element type, Value, than q, k and o.
//
// A thread holds two rows of each accumulator, 16 * warp + lane / 4 and the one 8 below, with columns
// 8 * n + 2 * (lane % 4) + {0, 1}; the four lanes of a quad share a row.
#pragma once

#include <cutlass/arch/reg_reconfig.h>
#include <cutlass/numeric_conversion.h>

#include <cute/arch/copy_sm90_tma.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

#include "cuda/sm90/ptx/matrix.cuh"
#include "cuda/sm90/tile/product.cuh"

namespace openmsa::cuda::sm90 {

inline constexpr int kWarpgroupRows = 64;  // query rows of a tile: a warpgroup's product
inline constexpr int kPanelChannels = 64;  // of one swizzled panel of 128 bytes

template <class Element_, int kDim_, int kBlock_, class Value_ = Element_>
struct AttentionTile {
  using Element = Element_;
  using Value = Value_;
  static constexpr int kDim = kDim_;
  static constexpr int kBlock = kBlock_;
  static constexpr int kHalves = kDim / kPanelChannels;

  using KMajor = cute::GMMA::Layout_K_SW128_Atom<Element>;
  using MnMajor = cute::GMMA::Layout_MN_SW128_Atom<Value>;
  using LayoutQ = decltype(cute::tile_to_shape(KMajor{}, cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<kDim>>{}));
  // The halves of eight rows side by side: whole rows of queries can then be loaded one by one.
  using LayoutQueries = decltype(cute::tile_to_shape(
      KMajor{}, cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<kDim>>{}, cute::Step<cute::_2, cute::_1>{}));
  using LayoutK = decltype(cute::tile_to_shape(KMajor{}, cute::Shape<cute::Int<kBlock>, cute::Int<kDim>>{}));
  // v lies [key][channel] like k; as the right operand of p v it is read [channel][key].
  using LayoutV = decltype(cute::tile_to_shape(MnMajor{}, cute::Shape<cute::Int<kDim>, cute::Int<kBlock>>{},
                                               cute::Step<cute::_2, cute::_1>{}));
  using ScoreShape = cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<kBlock>, cute::_16>;
  using ValueShape = cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<kDim>, cute::_16>;
  using ScoreMma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Element, Element, float, ScoreShape, cute::GMMA::Major::K, cute::GMMA::Major::K>()));
  using ValueMma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<Value, Value, float, ValueShape, cute::GMMA::Major::K, cute::GMMA::Major::MN>()));

  static constexpr int kScoreColumns = kBlock / 8;  // groups of 8 columns of s
  static constexpr int kValueColumns = kDim / 8;    // and of o

  using Scores =
      decltype(cute::partition_fragment_C(ScoreMma{}, cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<kBlock>>{}));
  using Values =
      decltype(cute::partition_fragment_C(ValueMma{}, cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<kDim>>{}));

  /// Starts s = q k^T; finish with cute::warpgroup_wait and a fence on s.
  template <class Layout = LayoutQ>
  __device__ static void start_scores(const Element* q, const Element* k, Scores& s, int thread) {
    using namespace cute;
    ScoreMma mma;
    const auto slice = mma.get_thread_slice(thread);
    const Tensor left = slice.partition_fragment_A(make_tensor(make_smem_ptr(q), Layout{}));
    const Tensor right = slice.partition_fragment_B(make_tensor(make_smem_ptr(k), LayoutK{}));
    start_product(mma, left, right, s, false);
  }

  /// The probabilities in s as the left operand of p v.
  __device__ static auto round_scores(const Scores& s) { return round_to_operand<Value>(s); }

  /// Starts o = p v, or o += p v.
  template <class Probabilities>
  __device__ static void start_values(const Probabilities& p, const Value* v, Values& o, bool accumulate, int thread) {
    using namespace cute;
    ValueMma mma;
    const auto slice = mma.get_thread_slice(thread);
    const Tensor right = slice.partition_fragment_B(make_tensor(make_smem_ptr(v), LayoutV{}));
    start_product(mma, p, right, o, accumulate);
  }

  /// Element (row, channel) of a swizzled tile of `rows` rows, in elements from its start.
  __device__ static constexpr int swizzled(int rows, int row, int channel) {
    return channel / kPanelChannels * rows * kPanelChannels + row * kPanelChannels +
           ((channel % kPanelChannels / 8) ^ (row % 8)) * 8 + channel % 8;
  }

  /// Stores o, its rows scaled, as a swizzled [64][kDim] tile: stmatrix writes four 8x8 matrices at once.
  __device__ static void store_values(const Values& o, float scale0, float scale1, Element* tile, int thread) {
    using namespace cute;
    const int lane = thread % 32, warp = thread / 32;
    const cutlass::NumericArrayConverter<Element, float, 2> convert;
    CUTE_UNROLL
    for (int n = 0; n < kValueColumns; n += 2) {
      std::uint32_t packed[4];
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) {  // rows 0-7 and 8-15 of columns n, then of columns n + 1
        const float scale = i % 2 == 0 ? scale0 : scale1;
        cutlass::Array<float, 2> pair;
        pair[0] = o(make_coord(0, i % 2, n + i / 2), 0, 0) * scale;
        pair[1] = o(make_coord(1, i % 2, n + i / 2), 0, 0) * scale;
        const auto rounded = convert(pair);
        packed[i] = reinterpret_cast<const std::uint32_t&>(rounded);
      }
      const int matrix = lane / 8, row = warp * 16 + matrix % 2 * 8 + lane % 8, channel = (n + matrix / 2) * 8;
      store_matrices(tile + swizzled(kWarpgroupRows, row, channel), packed);
    }
  }
};

/// Scales of keys, one each, in an order in which a thread finds those of its columns of s 16 bytes at a time: where the
/// one of key `key` lies.
__device__ __forceinline__ int scale_place(int key) {
  return key / 16 * 16 + key % 8 / 2 * 4 + key / 8 % 2 * 2 + key % 2;
}

/// s *= scale, column by column. The first kAhead loads come early, beside the product that makes s.
template <class Tile, int kAhead>
struct KeyScales {
  static constexpr int kLoads = Tile::kScoreColumns / 2;
  const float4* from;
  float4 ahead[kAhead];

  __device__ __forceinline__ void start(const float* scale, int lane) {
    from = reinterpret_cast<const float4*>(scale) + lane % 4;
    CUTE_UNROLL
    for (int i = 0; i < kAhead; ++i) ahead[i] = from[4 * i];
  }

  __device__ __forceinline__ void apply(typename Tile::Scores& s) {
    using namespace cute;
    CUTE_UNROLL
    for (int i = 0; i < kLoads; ++i) {
      const float4 four = ahead[i % kAhead];
      if (i + kAhead < kLoads) ahead[i % kAhead] = from[4 * (i + kAhead)];
      CUTE_UNROLL
      for (int row = 0; row < 2; ++row) {
        s(make_coord(0, row, 2 * i), 0, 0) *= four.x;
        s(make_coord(1, row, 2 * i), 0, 0) *= four.y;
        s(make_coord(0, row, 2 * i + 1), 0, 0) *= four.z;
        s(make_coord(1, row, 2 * i + 1), 0, 0) *= four.w;
      }
    }
  }
};

/// o *= alpha, row by row.
template <class Tile>
__device__ __forceinline__ void scale_values(typename Tile::Values& o, const float (&alpha)[2]) {
  using namespace cute;
  CUTE_UNROLL
  for (int n = 0; n < Tile::kValueColumns; ++n) {
    CUTE_UNROLL
    for (int c = 0; c < 2; ++c) {
      o(make_coord(c, 0, n), 0, 0) *= alpha[0];
      o(make_coord(c, 1, n), 0, 0) *= alpha[1];
    }
  }
}

}  // namespace openmsa::cuda::sm90
