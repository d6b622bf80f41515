// A warpgroup's share of a backward tile: 64 keys of a kv_block against 64 rows. Shared-memory layouts and the products
// of backward.cuh.
//
// A thread holds two rows of each accumulator, 16 * warp + lane / 4 and the one 8 below, with columns
// 8 * n + 2 * (lane % 4) + {0, 1}.
#pragma once

#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

#include "cuda/sm90/ptx/matrix.cuh"
#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/product.cuh"
#include "cuda/sm90/training/items.cuh"
#include "cuda/sm90/training/params.h"

namespace openmsa::cuda::sm90::training {

template <class Element_, int kDim_>
struct BackwardTile {
  using Element = Element_;
  static constexpr int kDim = kDim_;
  static constexpr int kHalves = kDim / kPanelChannels;
  static constexpr int kKeys = kTileKeys / 2;  // of a warpgroup: half of an item's

  template <int kRows, int kColumns>
  using Size = cute::Shape<cute::Int<kRows>, cute::Int<kColumns>>;
  using KMajor = cute::GMMA::Layout_K_SW128_Atom<Element>;
  using MnMajor = cute::GMMA::Layout_MN_SW128_Atom<Element>;
  using RowsFirst = cute::Step<cute::_1, cute::_2>;
  using ChannelsFirst = cute::Step<cute::_2, cute::_1>;

  // k and v [key][channel]: panels of 64 channels, one after the other; q and d_o [row][channel]: the panels of eight
  // rows side by side. ds [key][row]. Each is read both ways.
  using LayoutKeys = decltype(cute::tile_to_shape(KMajor{}, Size<kTileKeys, kDim>{}));
  using LayoutRows = decltype(cute::tile_to_shape(KMajor{}, Size<kTileRows, kDim>{}, ChannelsFirst{}));
  using LayoutKeysT = decltype(cute::tile_to_shape(MnMajor{}, Size<kDim, kTileKeys>{}, ChannelsFirst{}));
  using LayoutRowsT = decltype(cute::tile_to_shape(MnMajor{}, Size<kDim, kTileRows>{}, RowsFirst{}));
  using LayoutScores = decltype(cute::tile_to_shape(MnMajor{}, Size<kTileRows, kTileKeys>{}));
  static constexpr int kMeans = kMostProductQueries;  // columns of the smallest product over rows
  using LayoutMeans = decltype(cute::tile_to_shape(KMajor{}, Size<kMeans, kTileRows>{}));

  static constexpr auto kK = cute::GMMA::Major::K, kMn = cute::GMMA::Major::MN;
  template <int kRows, int kColumns>
  using Step = cute::Shape<cute::Int<kRows>, cute::Int<kColumns>, cute::_16>;
  using ScoreMma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Element, Element, float, Step<kKeys, kTileRows>, kK, kK>()));
  using KeyMma =
      decltype(cute::make_tiled_mma(cute::GMMA::rs_op_selector<Element, Element, float, Step<kKeys, kDim>, kK, kMn>()));
  using RowMma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Element, Element, float, Step<kTileRows, kDim / 2>, kMn, kMn>()));

  using MeanMma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<Element, Element, float, Step<kKeys, kMeans>, kK, kK>()));

  using Scores = decltype(cute::partition_fragment_C(ScoreMma{}, Size<kKeys, kTileRows>{}));
  using KeyGradients = decltype(cute::partition_fragment_C(KeyMma{}, Size<kKeys, kDim>{}));
  using RowGradients = decltype(cute::partition_fragment_C(RowMma{}, Size<kTileRows, kDim / 2>{}));

  using Means = decltype(cute::partition_fragment_C(MeanMma{}, Size<kKeys, kMeans>{}));

  /// Starts s^T = keys rows^T for the warpgroup's keys.
  __device__ static void start_scores(const Element* keys, const Element* rows, Scores& s, int consumer, int thread) {
    using namespace cute;
    ScoreMma mma;
    const auto slice = mma.get_thread_slice(thread);
    const Tensor all = make_tensor(make_smem_ptr(keys), LayoutKeys{});
    const Tensor left = slice.partition_fragment_A(local_tile(all, Size<kKeys, kDim>{}, make_coord(consumer, _0{})));
    const Tensor right = slice.partition_fragment_B(make_tensor(make_smem_ptr(rows), LayoutRows{}));
    start_product(mma, left, right, s, false);
  }

  /// Starts d = scores^T rows, or d += scores^T rows: d_v from p and d_o, d_k from ds and q.
  template <class Operand>
  __device__ static void start_key_gradients(const Operand& scores, const Element* rows, KeyGradients& d,
                                             bool accumulate, int thread) {
    using namespace cute;
    KeyMma mma;
    const auto slice = mma.get_thread_slice(thread);
    start_product(mma, scores, slice.partition_fragment_B(make_tensor(make_smem_ptr(rows), LayoutRowsT{})), d,
                  accumulate);
  }

  /// Starts means[key][query] = sum over rows of scores^T weights, weights[query][row].
  template <class Operand>
  __device__ static void start_means(const Operand& scores, const Element* weights, Means& means, int thread) {
    using namespace cute;
    MeanMma mma;
    const auto slice = mma.get_thread_slice(thread);
    start_product(mma, scores, slice.partition_fragment_B(make_tensor(make_smem_ptr(weights), LayoutMeans{})), means,
                  false);
  }

  /// Starts d = ds k for the warpgroup's half of the channels.
  __device__ static void start_row_gradients(const Element* ds, const Element* keys, RowGradients& d, int consumer,
                                             int thread) {
    using namespace cute;
    RowMma mma;
    const auto slice = mma.get_thread_slice(thread);
    const Tensor all = make_tensor(make_smem_ptr(keys), LayoutKeysT{});
    const Tensor half = local_tile(all, Size<kDim / 2, kTileKeys>{}, make_coord(consumer, _0{}));
    start_product(mma, slice.partition_fragment_A(make_tensor(make_smem_ptr(ds), LayoutScores{})),
                  slice.partition_fragment_B(half), d, false);
  }

  /// Scores as the left operand of a product over rows.
  __device__ static auto round(const Scores& s) { return round_to_operand<Element>(s); }

  /// Stores rounded scores of the warpgroup's keys into the [kTileKeys][kTileRows] tile of both: stmatrix writes four
  /// 8x8 matrices at once, keys 0-7 and 8-15 of rows [8 n, 8 n + 8), then of the eight rows after them.
  template <class Operand>
  __device__ static void store_scores(const Operand& scores, Element* tile, int consumer, int thread) {
    using namespace cute;
    const int lane = thread % 32, key = consumer * kKeys + thread / 32 * 16 + lane / 8 % 2 * 8 + lane % 8;
    const auto* const packed = reinterpret_cast<const std::uint32_t*>(&scores(0));
    CUTE_UNROLL
    for (int n = 0; n < kTileRows / 8; n += 2) {
      const int chunk = n + lane / 16;
      const std::uint32_t four[4] = {packed[2 * n], packed[2 * n + 1], packed[2 * n + 2], packed[2 * n + 3]};
      store_matrices(tile + key * kTileRows + (chunk ^ (key % 8)) * 8, four);
    }
  }
};

}  // namespace openmsa::cuda::sm90::training
