// Tiles of keys and values as they come from memory: in the element type of the queries, or in e4m3 and widened.
//
// Values in e4m3 become fp16, whatever the queries are: that takes one conversion where bf16 takes four, and p has
// three more bits. Keys become what the queries are.
#pragma once

#include <type_traits>

#include "cuda/sm90/prefill/e4m3_blocks.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/widen.cuh"

namespace openmsa::cuda::sm90::prefill {

template <class Element, class Cached, int kDim, int kBlock>
using CachedTile =
    AttentionTile<Element, kDim, kBlock, std::conditional_t<sizeof(Cached) == 1, cutlass::half_t, Element>>;

/// 16-bit elements of the memory of a tile.
template <class Cached, int kDim, int kBlock>
constexpr int cached_tile_elements() {
  return sizeof(Cached) == 1 ? WidenedTile<kDim, kBlock>::kBytes / 2 : kBlock * kDim;
}

/// Shared memory of a kernel. Beside e4m3 there is no room for bytes that align its start; but a kernel without static
/// shared memory has it on the boundary that its declaration asks for.
template <class Cached, class Storage>
constexpr std::size_t shared_bytes() {
  return sizeof(Storage) + (sizeof(Cached) == 1 ? 0 : 1024);
}

/// A warp's share of the rows of a tile of keys or values that the copy engine has brought: warp `number` of `warps`.
template <class Tile>
__device__ __forceinline__ void widen_keys(void* tile, int number, int warps, int lane) {
  WidenedTile<Tile::kDim, Tile::kBlock>::template widen<typename Tile::Element, false>(tile, number, warps, lane);
}
template <class Tile>
__device__ __forceinline__ void widen_values(const AttendParams& p, void* tile, int number, int warps, int lane) {
  using Widened = WidenedTile<Tile::kDim, Tile::kBlock>;
  if (p.v_scale.is_per_token()) {
    Widened::template widen<typename Tile::Value, true>(tile, number, warps, lane);
  } else {
    Widened::template widen<typename Tile::Value, false>(tile, number, warps, lane);
  }
}

/// Arrives at `full` for a warp when products may read what it has widened.
__device__ __forceinline__ void finish_widening(std::uint64_t* full, int lane) {
  cutlass::arch::fence_view_async_shared();
  __syncwarp();
  if (lane == 0) EmptyBarrier::arrive(full);
}

}  // namespace openmsa::cuda::sm90::prefill
