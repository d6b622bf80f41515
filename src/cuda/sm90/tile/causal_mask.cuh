// Keys that a row does not see: their scores become -inf, and values that no row of a tile sees become zeros.
#pragma once

#include <cutlass/arch/barrier.h>

#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"

namespace openmsa::cuda::sm90 {

/// Hides the keys after last[i], counted from the first of the tile, from the thread's row i; negative: all of them.
template <class Tile>
__device__ __forceinline__ void hide_later_keys(typename Tile::Scores& s, const int (&last)[2], int lane) {
  using namespace cute;
  if (min(last[0], last[1]) >= Tile::kBlock - 1) return;
  const int limit[2] = {last[0] - lane % 4 * 2, last[1] - lane % 4 * 2};
  CUTE_UNROLL
  for (int i = 0; i < size(s); ++i) {  // s(i): row i / 2 % 2, column i / 4 * 8 + lane % 4 * 2 + i % 2
    if (i / 4 * 8 + i % 2 > limit[i / 2 % 2]) s(i) = -INFINITY;
  }
}

/// Values that no query of the tile sees, past the end of the sequence or later than the tile, may be NaN, and 0 *
/// NaN is NaN: `threads` threads overwrite those from `valid` on with 0 and meet at `cleared`.
template <class Tile, class Barrier>
__device__ __forceinline__ void clear_tail(typename Tile::Element* v, int valid, int thread, int threads,
                                           Barrier cleared) {
  constexpr int kChunks = Tile::kDim / 8;
  for (int i = valid * kChunks + thread; i < Tile::kBlock * kChunks; i += threads) {
    const int at = Tile::swizzled(Tile::kBlock, i / kChunks, i % kChunks * 8);
    *reinterpret_cast<uint4*>(v + at) = uint4{0, 0, 0, 0};
  }
  cutlass::arch::fence_view_async_shared();
  sync(cleared, threads);
}

}  // namespace openmsa::cuda::sm90
