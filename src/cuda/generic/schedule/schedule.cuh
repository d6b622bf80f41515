// From a selection to work for the tensor cores, on the device, for several schedule batches at once:
//
//   0. clear_lists    once for a call: the counters of its kv_blocks
//   1. split_pairs    a CTA per tile: its shared blocks, the pairs left to kv_outer, a slot and a place in its list for
//                     each of these
//   2. make_items     a CTA per schedule batch: prefix sums over the lists of every kv_block, cut into work items
//   3. place_visits   every kv_outer pair to its place in its list
//
// The order of the pairs within a list depends on timing. No result does: rows of a product do not touch each other,
// and shared blocks, slots and the order of merging follow from the selection alone.
#pragma once

#include <cub/block/block_scan.cuh>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/generic/schedule/split.h"

namespace openmsa::cuda::generic {

inline constexpr int kSplitThreads = 128;
inline constexpr int kItemThreads = 1024;

/// Shared memory of a tile with `entries` pairs: the arrays of TileSelection, and counters.
constexpr int split_shared_bytes(int entries) {
  const int table = 1 << TileSelection::log2_table_for(entries);
  return table * 8 + entries * static_cast<int>(4 + 4 + sizeof(SharedBlock));
}

__device__ __forceinline__ TileSelection tile_selection(char* raw, int capacity, std::int32_t* num_shared) {
  TileSelection s;
  s.log2_table = TileSelection::log2_table_for(capacity);
  s.keys = reinterpret_cast<std::int32_t*>(raw);
  s.members = reinterpret_cast<std::uint32_t*>(s.keys + (1 << s.log2_table));
  s.shared = reinterpret_cast<SharedBlock*>(s.members + (1 << s.log2_table));
  s.places = reinterpret_cast<std::int32_t*>(s.shared + capacity);
  s.kv_outer = s.places + capacity;
  s.num_shared = num_shared;
  return s;
}

__global__ void clear_lists_kernel(const ScheduleParams p) {
  wait_for_earlier_kernels();
  const ScheduleBatch work = p.work.after(blockIdx.y);
  const std::int32_t blocks = p.index.blocks[p.batch.batch], lists = blocks * work.passes(blocks);
  for (std::int32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < lists; i += gridDim.x * blockDim.x) {
    work.list_counts[i] = 0;
  }
}

__global__ void __launch_bounds__(kSplitThreads) split_pairs_kernel(const ScheduleParams p) {
  extern __shared__ __align__(8) char raw[];
  __shared__ std::int32_t num_shared;
  __shared__ int slot_counts[kMaxTileQueries];
  const ScheduleBatch work = p.work.after(blockIdx.y);
  const int capacity = work.tile_queries * p.topk;
  TileSelection s = tile_selection(raw, capacity, &num_shared);
  for (int i = threadIdx.x; i < 1 << s.log2_table; i += kSplitThreads) {
    s.keys[i] = TileSelection::kNone;
    s.members[i] = 0;
  }
  if (threadIdx.x == 0) num_shared = 0;
  if (threadIdx.x < kMaxTileQueries) slot_counts[threadIdx.x] = 0;
  __syncthreads();
  wait_for_earlier_kernels();

  const int number = blockIdx.x;
  const bool exists = work.first_tile + number < p.index.tiles[p.batch.batch + 1];
  const QueryTile tile =
      exists ? find_tile(p.batch, p.index, work.first_tile + number, work.tile_queries) : QueryTile{};
  s.entries = tile.count * p.topk;
  s.topk = p.topk;
  for (int e = threadIdx.x; e < s.entries; e += kSplitThreads) {
    s.enter(e, selected_block(p, work, tile, e / p.topk, e % p.topk));
  }
  __syncthreads();
  for (int e = threadIdx.x; e < s.entries; e += kSplitThreads) {
    s.decide(e, tile.position, p.batch.block_size, p.shared_threshold);
  }
  __syncthreads();

  const ListNumbers lists(p, work, tile, number);
  for (int e = threadIdx.x; e < s.entries; e += kSplitThreads) s.reserve(e, lists, work.list_counts);
  __syncthreads();

  const std::int64_t base = static_cast<std::int64_t>(number) * capacity;
  for (int u = threadIdx.x; u < num_shared; u += kSplitThreads) work.shared[base + s.rank(u)] = s.shared[u];
  for (int e = threadIdx.x; e < capacity; e += kSplitThreads) {
    KvOuterPair pair{{0, 0}, -1, 0};
    if (e < s.entries && s.kv_outer[e] != TileSelection::kNone) {
      pair = kv_outer_pair(work, tile, s, lists, number, e);
      atomicAdd(&slot_counts[e / p.topk], 1);
    }
    work.pairs[base + e] = pair;
  }
  __syncthreads();
  if (threadIdx.x == 0) work.shared_counts[number] = num_shared;
  if (threadIdx.x < work.tile_queries) {
    work.slot_counts[number * work.tile_queries + threadIdx.x] = slot_counts[threadIdx.x];
  }
}

/// Visits of kPasses lists, and work items of each pass in 16 bits: the sums of a CTA's threads fit.
struct ListSums {
  std::uint64_t items;
  std::int32_t visits;

  __device__ __forceinline__ friend ListSums operator+(const ListSums& a, const ListSums& b) {
    return {a.items + b.items, a.visits + b.visits};
  }
  __device__ __forceinline__ int of_pass(int pass) const { return static_cast<int>(items >> 16 * pass & 0xffff); }
};
static_assert(kMaxPasses * 16 <= 64);

/// Leaves list_counts zero for the next schedule batch.
__global__ void __launch_bounds__(kItemThreads) make_items_kernel(const ScheduleParams p) {
  using Scan = cub::BlockScan<ListSums, kItemThreads>;
  __shared__ typename Scan::TempStorage storage;
  __shared__ int pass_items[kMaxPasses];
  wait_for_earlier_kernels();
  const ScheduleBatch work = p.work.after(blockIdx.x);
  const int blocks = p.index.blocks[p.batch.batch], passes = work.passes(blocks);
  const auto kv_outer_block = [&](int block) {
    int visits = 0;
    for (int pass = 0; block < blocks && pass < passes; ++pass) visits += work.list_counts[block * passes + pass];
    return KvOuterBlock(visits, p.log2_group_size);
  };

  if (threadIdx.x < kMaxPasses) pass_items[threadIdx.x] = 0;
  __syncthreads();
  for (int first = 0; first < blocks; first += kItemThreads) {
    const KvOuterBlock list = kv_outer_block(first + threadIdx.x);
    for (int pass = 0; pass < passes; ++pass) {
      const int items = list.items_of_pass(pass, passes);
      const int sum = __reduce_add_sync(kFullWarp, items);
      if (threadIdx.x % 32 == 0) atomicAdd(&pass_items[pass], sum);
    }
  }
  __syncthreads();
  int next_item[kMaxPasses], next_visit = 0, num_items = 0;  // next_item: of each pass
  for (int pass = 0; pass < kMaxPasses; ++pass) {
    next_item[pass] = num_items;
    num_items += pass_items[pass];
  }
  if (threadIdx.x == 0) *work.num_items = num_items;

  for (int first = 0; first < blocks; first += kItemThreads) {
    const int among_all = first + threadIdx.x;
    const KvOuterBlock list = kv_outer_block(among_all);
    ListSums mine{0, list.visits}, before, sum;
    for (int pass = 0; pass < passes; ++pass) {
      const int items = list.items_of_pass(pass, passes);
      mine.items |= static_cast<std::uint64_t>(items) << 16 * pass;
    }
    Scan(storage).ExclusiveScan(
        mine, before, ListSums{0, 0}, [](ListSums a, ListSums b) { return a + b; }, sum);
    if (among_all < blocks) {
      const int sequence = find_sequence({p.index.blocks, 1}, p.batch.batch, among_all);
      const int block = among_all - p.index.blocks[sequence], visit = next_visit + before.visits;
      int offset = visit;
      for (int pass = 0; pass < passes; ++pass) {
        const int list_number = among_all * passes + pass;
        work.list_offsets[list_number] = offset;
        offset += work.list_counts[list_number];
        work.list_counts[list_number] = 0;
        const int first_item = list.first_of_pass(pass, passes), end = list.first_of_pass(pass + 1, passes);
        KvOuterItem* const items = work.items + next_item[pass] + before.of_pass(pass);
        for (int i = first_item; i < end; ++i) items[i - first_item] = list.item(i, sequence, block, visit);
      }
    }
    next_visit += sum.visits;
    for (int pass = 0; pass < kMaxPasses; ++pass) next_item[pass] += sum.of_pass(pass);
    __syncthreads();
  }
}

__global__ void place_visits_kernel(const ScheduleParams p) {
  wait_for_earlier_kernels();
  const ScheduleBatch work = p.work.after(blockIdx.y);
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= work.max_pairs()) return;
  const KvOuterPair pair = work.pairs[at];
  if (pair.list >= 0) work.visits[work.list_offsets[pair.list] + pair.rank] = pair.visit;
}

}  // namespace openmsa::cuda::generic
