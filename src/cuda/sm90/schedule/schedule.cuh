// From a selection to work for the tensor cores, on the device:
//
//   1. split_pairs    a block per tile: which kv_blocks the tile's union gets, which pairs are gathered, a slot for
//   each
//   2. make_items     one block: prefix sums over the lists, work items of at most kMaxItemVisits visits
//   3. place_visits   every gathered pair to its place in its kv_block's list
//
// The order of the pairs within a list depends on timing. No result does: rows of a product do not touch each other,
// and unions, slots and the order of merging follow from the selection alone.
#pragma once

#include <cub/block/block_scan.cuh>

#include "cuda/sm90/schedule/split.h"

namespace openmsa::cuda::sm90 {

inline constexpr int kSplitThreads = 128;
inline constexpr int kItemThreads = 1024;

__device__ __forceinline__ TileSelection tile_selection(char* raw, int capacity, int entries, int topk) {
  auto* blocks = reinterpret_cast<std::int32_t*>(raw);
  auto* members = reinterpret_cast<std::uint32_t*>(blocks + capacity);
  return {entries, topk, blocks, members, reinterpret_cast<std::uint8_t*>(members + capacity)};
}

/// Fills a tile's selection; a kv_block that a query names twice counts once.
__device__ __forceinline__ void load_selection(const PrefillParams& p, const QueryTile& tile, TileSelection& s) {
  for (int e = threadIdx.x; e < s.entries; e += kSplitThreads) {
    s.blocks[e] = selected_block(p, tile, e / s.topk, e % s.topk);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < s.entries; e += kSplitThreads) s.flags[e] = s.repeats(e);
  __syncthreads();
  for (int e = threadIdx.x; e < s.entries; e += kSplitThreads) {
    if (s.flags[e]) s.blocks[e] = -1;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < s.entries; e += kSplitThreads) {
    s.members[e] = s.wanted_by(e);
    s.flags[e] = s.joins(e, tile.position, p.batch.block_size, p.union_threshold);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kSplitThreads) split_pairs_kernel(const PrefillParams p) {
  extern __shared__ char raw[];
  __shared__ int union_count;
  __shared__ int slot_counts[kMaxTileQueries];
  cudaGridDependencySynchronize();

  const Chunk& chunk = p.chunk;
  const int capacity = chunk.tile_queries * p.topk;
  const std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * capacity;
  const int tile_number = chunk.first_tile + blockIdx.x;
  const bool exists = tile_number < p.index.tiles[p.batch.batch + 1];
  const QueryTile tile = exists ? find_tile(p.batch, p.index, tile_number, chunk.tile_queries) : QueryTile{};
  TileSelection s = tile_selection(raw, capacity, tile.count * p.topk, p.topk);
  if (threadIdx.x == 0) union_count = 0;
  if (threadIdx.x < kMaxTileQueries) slot_counts[threadIdx.x] = 0;
  load_selection(p, tile, s);

  for (int e = threadIdx.x; e < capacity; e += kSplitThreads) {
    GatheredPair pair{{0, 0}, -1, 0};
    if (e < s.entries && s.is_gathered(e)) {
      pair = gathered_pair(p, tile, s, blockIdx.x, e);
      pair.rank = atomicAdd(&chunk.list_counts[pair.list], 1);
      atomicAdd(&slot_counts[e / p.topk], 1);
    } else if (e < s.entries && s.leads(e)) {
      chunk.unions[base + s.union_rank(e)] = {s.blocks[e], s.members[e]};
      atomicAdd(&union_count, 1);
    }
    chunk.pairs[base + e] = pair;
  }
  __syncthreads();
  if (threadIdx.x == 0) chunk.union_counts[blockIdx.x] = union_count;
  if (threadIdx.x < chunk.tile_queries) {
    chunk.slot_counts[blockIdx.x * chunk.tile_queries + threadIdx.x] = slot_counts[threadIdx.x];
  }
}

/// One block. Leaves list_counts zero for the next chunk.
__global__ void __launch_bounds__(kItemThreads) make_items_kernel(const PrefillParams p) {
  using Scan = cub::BlockScan<int, kItemThreads>;
  __shared__ typename Scan::TempStorage visit_storage, item_storage;
  cudaGridDependencySynchronize();
  const Chunk& chunk = p.chunk;
  const int lists = p.index.blocks[p.batch.batch];
  int visits_before = 0, items_before = 0;
  for (int first = 0; first < lists; first += kItemThreads) {
    const int list = first + threadIdx.x;
    const int count = list < lists ? chunk.list_counts[list] : 0;
    int visit, item, visit_sum, item_sum;
    Scan(visit_storage).ExclusiveSum(count, visit, visit_sum);
    Scan(item_storage).ExclusiveSum(num_items(count), item, item_sum);
    visit += visits_before;
    item += items_before;
    if (list < lists) {
      chunk.list_counts[list] = 0;
      chunk.list_offsets[list] = visit;
    }
    for (int i = 0; i < num_items(count); ++i) chunk.items[item + i] = gathered_item(p, list, visit, count, i);
    visits_before += visit_sum;
    items_before += item_sum;
    __syncthreads();
  }
  if (threadIdx.x == 0) *chunk.num_items = items_before;
}

__global__ void place_visits_kernel(const PrefillParams p) {
  cudaGridDependencySynchronize();
  const Chunk& chunk = p.chunk;
  const std::int64_t count = static_cast<std::int64_t>(chunk.max_tiles) * chunk.tile_queries * p.topk;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const GatheredPair pair = chunk.pairs[at];
  if (pair.list >= 0) chunk.visits[chunk.list_offsets[pair.list] + pair.rank] = pair.visit;
}

}  // namespace openmsa::cuda::sm90
