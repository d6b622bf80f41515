// A warpgroup's share of a step: 64 keys of a kv_block against 32 queries. Shared-memory layouts and the products of
// kv_outer.cuh.
//
// A thread holds two keys of each accumulator with keys as rows, 16 * warp + lane / 4 and the one 8 below, with columns
// 8 * n + 2 * (lane % 4) + {0, 1}.
#pragma once

#include <cutlass/numeric_conversion.h>

#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

#include "cuda/sm90/ptx/matrix.cuh"
#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/product.cuh"
#include "cuda/sm90/training/items.cuh"
#include "cuda/sm90/training/kl/params.h"

namespace openmsa::cuda::sm90::training::kl {

inline constexpr int kKeys = kTileKeys / 2;  // of a warpgroup
/// Queries of a step whose scores a thread holds: columns 8 (i / 2) + 2 (lane % 4) + i % 2.
inline constexpr int kThreadQueries = kStepQueries / 4;

template <class Element_, int kIndexDim_>
struct Tile {
  using Element = Element_;
  static constexpr int kIndexDim = kIndexDim_;
  // d_index_q: 64 channels of all queries are a consumer's, or with 64 channels in all those of half of the queries.
  static constexpr bool kSplitsChannels = kIndexDim == 128;
  static constexpr int kOwnQueries = kSplitsChannels ? kStepQueries : kStepQueries / 2;

  template <int kRows, int kColumns>
  using Size = cute::Shape<cute::Int<kRows>, cute::Int<kColumns>>;
  using KMajor = cute::GMMA::Layout_K_SW128_Atom<Element>;
  using MnMajor = cute::GMMA::Layout_MN_SW128_Atom<Element>;
  using ChannelsFirst = cute::Step<cute::_2, cute::_1>;

  // index_k [key][channel] and index_q [query][channel]: panels of 64 channels, one after the other, read both ways.
  // gradients [query][key].
  using LayoutIndexKeys = decltype(cute::tile_to_shape(KMajor{}, Size<kTileKeys, kIndexDim>{}));
  using LayoutIndexKeysT = decltype(cute::tile_to_shape(MnMajor{}, Size<kIndexDim, kTileKeys>{}, ChannelsFirst{}));
  using LayoutIndexRows = decltype(cute::tile_to_shape(KMajor{}, Size<kStepQueries, kIndexDim>{}));
  using LayoutIndexRowsT = decltype(cute::tile_to_shape(MnMajor{}, Size<kIndexDim, kStepQueries>{}, ChannelsFirst{}));
  using LayoutGradients = decltype(cute::tile_to_shape(KMajor{}, Size<kStepQueries, kTileKeys>{}));

  static constexpr auto kK = cute::GMMA::Major::K, kMn = cute::GMMA::Major::MN;
  template <int kRows, int kColumns>
  using Step = cute::Shape<cute::Int<kRows>, cute::Int<kColumns>, cute::_16>;
  using StudentMma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Element, Element, float, Step<kKeys, kStepQueries>, kK, kK>()));
  using IndexKeyMma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<Element, Element, float, Step<kKeys, kIndexDim>, kK, kMn>()));
  using IndexRowMma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Element, Element, float, Step<kPanelChannels, kOwnQueries>, kMn, kK>()));

  using StudentScores = decltype(cute::partition_fragment_C(StudentMma{}, Size<kKeys, kStepQueries>{}));
  using IndexKeyGradients = decltype(cute::partition_fragment_C(IndexKeyMma{}, Size<kKeys, kIndexDim>{}));
  using IndexRowGradients = decltype(cute::partition_fragment_C(IndexRowMma{}, Size<kPanelChannels, kOwnQueries>{}));
  using Operand = LeftOperand<Element, kStepQueries>;

  /// Starts s_idx^T = index_k index_q^T, [64 keys][kStepQueries].
  __device__ static void start_student(const Element* keys, const Element* rows, StudentScores& s, int consumer,
                                       int thread) {
    using namespace cute;
    const auto slice = StudentMma{}.get_thread_slice(thread);
    const Tensor all = make_tensor(make_smem_ptr(keys), LayoutIndexKeys{});
    const Tensor own = local_tile(all, Size<kKeys, kIndexDim>{}, make_coord(consumer, _0{}));
    start_product(StudentMma{}, slice.partition_fragment_A(own),
                  slice.partition_fragment_B(make_tensor(make_smem_ptr(rows), LayoutIndexRows{})), s, false);
  }

  /// Starts d_index_k += g^T index_q, [64 keys][kIndexDim].
  __device__ static void start_index_keys(const Operand& gradients, const Element* rows, IndexKeyGradients& d,
                                          bool accumulate, int thread) {
    using namespace cute;
    const auto slice = IndexKeyMma{}.get_thread_slice(thread);
    start_product(IndexKeyMma{}, gradients,
                  slice.partition_fragment_B(make_tensor(make_smem_ptr(rows), LayoutIndexRowsT{})), d, accumulate);
  }

  /// Starts d_index_q^T = index_k^T g^T over all 128 keys, [64 channels][kOwnQueries].
  __device__ static void start_index_rows(const Element* keys, const Element* gradients, IndexRowGradients& d,
                                          int consumer, int thread) {
    using namespace cute;
    const int half = kSplitsChannels ? consumer : 0, queries = kSplitsChannels ? 0 : consumer;
    const auto slice = IndexRowMma{}.get_thread_slice(thread);
    const Tensor channels = make_tensor(make_smem_ptr(keys), LayoutIndexKeysT{});
    const Tensor all = make_tensor(make_smem_ptr(gradients), LayoutGradients{});
    start_product(
        IndexRowMma{},
        slice.partition_fragment_A(local_tile(channels, Size<kPanelChannels, kTileKeys>{}, make_coord(half, _0{}))),
        slice.partition_fragment_B(local_tile(all, Size<kOwnQueries, kTileKeys>{}, make_coord(queries, _0{}))), d,
        false);
  }

  /// A thread's gradients of two keys as a left operand: the same place in registers, rounded.
  __device__ static Operand round(const float (&g)[2][kThreadQueries]) {
    Operand operand;
    const cutlass::NumericArrayConverter<Element, float, 2> convert;
    CUTE_UNROLL
    for (int i = 0; i < kThreadQueries; ++i) {
      cutlass::Array<float, 2> pair;
      pair[0] = g[i % 2][i / 2 * 2];
      pair[1] = g[i % 2][i / 2 * 2 + 1];
      reinterpret_cast<cutlass::Array<Element, 2>*>(&operand(0))[i] = convert(pair);
    }
    return operand;
  }

  /// Stores rounded gradients of the warpgroup's keys into the [queries][128 keys] tile of both: 16 queries at once.
  __device__ static void store_gradients(const Operand& gradients, Element* tile, int consumer, int thread) {
    const int lane = thread % 32, query = lane / 16 * 8 + lane % 8;
    const int key = consumer * kKeys + thread / 32 * 16 + lane / 8 % 2 * 8;
    const auto* const packed = reinterpret_cast<const std::uint32_t*>(&gradients(0));
    CUTE_UNROLL
    for (int i = 0; i < kThreadQueries; i += 4) {
      const std::uint32_t four[4] = {packed[i], packed[i + 1], packed[i + 2], packed[i + 3]};
      store_matrices_transposed(tile + swizzled(kStepQueries, query + 4 * i, key), four);
    }
  }

  /// Element (row, column) of a tile of `rows` rows in panels of 64 columns, in elements from its start.
  __device__ static constexpr int swizzled(int rows, int row, int column) {
    return AttentionTile<Element, kIndexDim, kTileKeys>::swizzled(rows, row, column);
  }
};

}  // namespace openmsa::cuda::sm90::training::kl
