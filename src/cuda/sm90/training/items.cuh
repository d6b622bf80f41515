// What kernels with kv_blocks in the outer loop do with a work item: the ring through which a CTA's warps meet it, and
// keys that are not finite.
#pragma once

#include <cutlass/arch/barrier.h>
#include <cutlass/numeric_types.h>

#include <cstdint>
#include <cute/config.hpp>
#include <cute/util/type_traits.hpp>

#include "cuda/generic/lists/params.h"
#include "cuda/sm90/ptx/async_copy.cuh"
#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/training/params.h"

namespace openmsa::cuda::sm90::training {

/// The CTA's items one after the other, for a warp that reads them from the ring. count 0: no more.
template <class Storage, class Work>
__device__ __forceinline__ void for_each_item(Storage& storage, Work work) {
  PipelineState<sizeof(storage.items) / sizeof(storage.items[0])> ring;
  for (;; ring.advance()) {
    FullBarrier::wait(&storage.item_full[ring.stage], ring.phase);
    const auto item = storage.items[ring.stage];
    __syncwarp();
    if (threadIdx.x % 32 == 0) EmptyBarrier::arrive(&storage.item_empty[ring.stage]);
    if (item.count == 0) return;
    work(item);
  }
}

/// Takes items of a list batch, by the counter next_item, and puts them into the ring; one thread. make(item, number): what
/// stands in the ring; load(item, row): loads the item's keys, from row `row` of the keys on.
template <class Batch, class Storage, class Make, class Load>
__device__ __forceinline__ void take_items(const Batch& batch, const generic::ListBatch& work, std::int32_t* next_item,
                                           Storage& storage, const Make& make, const Load& load) {
  const int num_items = *work.num_items;
  PipelineState<sizeof(storage.items) / sizeof(storage.items[0])> ring;
  for (;; ring.advance()) {
    const int number = atomicAdd(next_item, 1);
    const auto item = make(number < num_items ? work.items[number] : generic::ListItem{}, number);
    EmptyBarrier::wait(&storage.item_empty[ring.stage], ring.phase ^ 1);
    storage.items[ring.stage] = item;
    EmptyBarrier::arrive(&storage.item_full[ring.stage]);
    if (item.count == 0) return;
    load(item, batch.sequence(item.sequence).k_row + item.block * batch.block_size);
  }
}

inline constexpr auto kKeepInL2 = static_cast<std::uint64_t>(CacheHintSm90::EVICT_NORMAL);

/// Starts the copies of an item's keys of one tensor: panels of 64 channels, one after the other.
template <int kDim, class Element>
__device__ __forceinline__ void copy_key_panels(const CUtensorMap& map, int head, int row, Element* to,
                                                std::uint64_t* full) {
  for (int channel = 0; channel < kDim; channel += kPanelChannels) {
    cute::SM90_TMA_LOAD_4D::copy(&map, full, kKeepInL2, to + channel * kTileKeys, channel, head, row, 0);
  }
}

/// The same for a stage that holds nothing else.
template <int kDim, class Element>
__device__ __forceinline__ void load_key_panels(const CUtensorMap& map, int head, int row, Element* to,
                                                std::uint64_t* full) {
  FullBarrier::arrive_and_expect_tx(full, kTileKeys * kDim * static_cast<int>(sizeof(Element)));
  copy_key_panels<kDim>(map, head, row, to, full);
}

/// Starts the copies of a query's 2^shift rows to its place `x` in a tile of rows (BackwardTile::LayoutRows): one, or one
/// per half where it has less than 8 rows.
template <class Tile>
__device__ __forceinline__ void copy_query(const CUtensorMap& map, std::uint64_t* full, typename Tile::Element* tile,
                                           int x, int shift, int kv_head, int token) {
  const int first = x << shift, head = kv_head << shift;
  for (int h = 0; h < (shift < 3 ? Tile::kHalves : 1); ++h) {
    const int at = (first / 8 * Tile::kHalves + h) * 8 * kPanelChannels + first % 8 * kPanelChannels;
    cute::SM90_TMA_LOAD_5D::copy(&map, full, kKeepInL2, tile + at, 0, head % 8, h, head / 8, token);
  }
}

/// Whether none of eight elements is NaN or infinite: their exponents are not all ones.
template <class Element>
__device__ __forceinline__ bool is_finite(const uint4& chunk) {
  constexpr std::uint32_t kExponent = cute::is_same_v<Element, cutlass::half_t> ? 0x7c00u : 0x7f80u;
  bool finite = true;
  for (const std::uint32_t two : {chunk.x, chunk.y, chunk.z, chunk.w}) {
    finite &= (two & kExponent) != kExponent && (two >> 16 & kExponent) != kExponent;
  }
  return finite;
}

/// Chunks of a tile of keys that are not finite become 0, for kThreads threads, which have to meet after it.
template <int kDim, int kThreads, class Element>
__device__ __forceinline__ void clear_keys_not_finite(Element* keys, int thread) {
  auto* const chunks = reinterpret_cast<uint4*>(keys);
  bool found = false;
#pragma unroll
  for (int i = 0; i < kTileKeys * kDim / 8 / kThreads; ++i) {
    uint4& chunk = chunks[i * kThreads + thread];
    if (is_finite<Element>(chunk)) continue;
    chunk = uint4{0, 0, 0, 0};
    found = true;
  }
  if (found) cutlass::arch::fence_view_async_shared();
}

}  // namespace openmsa::cuda::sm90::training
