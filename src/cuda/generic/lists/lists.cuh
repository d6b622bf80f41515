// From a selection to reverse lists and their items, on the device, for one list batch:
//
//   1. index_rows    one CTA: where each sequence's bits begin
//   2. set_bits      a thread per slot of topk_indices
//   3. count_visits  a warp per list and range
//   4. place_items   a CTA per range: where each list's visits begin, and its items, part by part
//   5. write_visits  a warp per list and range: bits to rows; leaves the bits zero
//
// Dense attention has no lists: count_rows and place_items.
#pragma once

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/generic/lists/list.h"

namespace openmsa::cuda::generic {

inline constexpr int kPlaceThreads = 1024;
inline constexpr int kListWarps = 8;  // of kernels with a warp per list
inline constexpr int kCountThreads = 256;
inline constexpr int kIndexRowsThreads = 256;
inline constexpr int kSetBitsThreads = 256;

__global__ void __launch_bounds__(kIndexRowsThreads) index_rows_kernel(const ListParams p) {
  using Scan = cub::BlockScan<std::int64_t, kIndexRowsThreads>;
  __shared__ typename Scan::TempStorage storage;
  wait_for_earlier_kernels();
  std::int64_t words_before = 0;
  for (int first = 0; first < p.batch.batch; first += kIndexRowsThreads) {
    const int b = first + threadIdx.x;
    std::int64_t words = 0, offset, sum;
    if (b < p.batch.batch) {
      const RowsInBatch rows = rows_in_batch(p, b);
      words = std::int64_t{rows.words()} * rows.blocks;
    }
    Scan(storage).ExclusiveSum(words, offset, sum);
    if (b < p.batch.batch) p.first_words[b] = words_before + offset;
    words_before += sum;
    __syncthreads();
  }
  if (threadIdx.x == 0) p.first_words[p.batch.batch] = words_before;
}

/// CTAs [rows * topk / kSetBitsThreads][heads].
__global__ void __launch_bounds__(kSetBitsThreads) set_bits_kernel(const ListParams p) {
  wait_for_earlier_kernels();
  const int entry = blockIdx.x * kSetBitsThreads + threadIdx.x, row = entry / p.topk;
  if (row >= p.rows) return;
  const SelectedBit bit =
      selected_bit(p, p.first_head + static_cast<int>(blockIdx.y), p.first_row + row, entry % p.topk);
  if (bit.word != nullptr) atomicOr(bit.word, bit.mask);
}

/// A warp's list and range, and its pieces of bits there: none where the list's number is too large or none of the
/// batch's rows sees the kv_block. CTAs [lists / kListWarps][ranges].
struct WarpList {
  std::int32_t list;
  std::int32_t range;
  std::int32_t begin = 0;  // pieces of the batch's rows
  std::int32_t end = 0;
  uint4* bits = nullptr;  // of piece `begin`

  __device__ __forceinline__ explicit WarpList(const ListParams& p)
      : list(static_cast<std::int32_t>(blockIdx.x * kListWarps + threadIdx.x / 32)),
        range(static_cast<std::int32_t>(blockIdx.y)) {
    if (list >= num_lists(p)) return;
    const ListPlace place = find_list(p, list);
    const RowsInBatch rows = rows_in_batch(p, place.sequence);
    if (place.block >= rows.blocks) return;
    const int pieces = p.range_rows / RowsInBatch::kPieceRows;
    begin = max(rows.first_piece, range * pieces);
    end = min(rows.end_piece, (range + 1) * pieces);
    bits = reinterpret_cast<uint4*>(block_bits(p, place, rows)) + begin - rows.first_piece;
  }
};

__device__ __forceinline__ int count_bits_of(const uint4& words) {
  return __popc(words.x) + __popc(words.y) + __popc(words.z) + __popc(words.w);
}

/// One thread per list and range; tickets begin at 0.
__device__ __forceinline__ void keep_count(const ListParams& p, int list, int range, int count) {
  p.counts[range * std::int64_t{num_lists(p)} + list] = count;
  if (range == 0) p.tickets[list] = 0;
}

__global__ void __launch_bounds__(kListWarps * 32) count_visits_kernel(const ListParams p) {
  wait_for_earlier_kernels();
  const WarpList warp(p);
  if (warp.list >= num_lists(p)) return;
  int count = 0;
  for (int i = threadIdx.x % 32; i < warp.end - warp.begin; i += 32) count += count_bits_of(warp.bits[i]);
  count = __reduce_add_sync(kFullWarp, count);
  if (threadIdx.x % 32 == 0) keep_count(p, warp.list, warp.range, count);
}

/// A thread per list and range of dense attention: CTAs [lists / kCountThreads][ranges].
__global__ void __launch_bounds__(kCountThreads) count_rows_kernel(const ListParams p) {
  wait_for_earlier_kernels();
  const int list = blockIdx.x * kCountThreads + threadIdx.x, range = blockIdx.y;
  if (list < num_lists(p)) keep_count(p, list, range, DenseRows(p, find_list(p, list), range).count);
}

using RangeSum = cub::BlockReduce<std::uint64_t, kPlaceThreads>;

/// Items << 32 | visits, where these are stored, of all ranges before the CTA's; in every thread.
__device__ __forceinline__ std::uint64_t sum_earlier_ranges(const ListParams& p, int range, int lists,
                                                            typename RangeSum::TempStorage& storage) {
  __shared__ std::uint64_t all;
  std::uint64_t sum = 0;
  for (int list = threadIdx.x; list < lists; list += kPlaceThreads) {
#pragma unroll 4
    for (int r = 0; r < range; ++r) {
      const ListItems items(p.counts[r * std::int64_t{lists} + list], p.item_visits);
      sum += static_cast<std::uint64_t>(items.items) << 32 | (p.is_dense() ? 0 : items.count);
    }
  }
  sum = RangeSum(storage).Sum(sum);
  if (threadIdx.x == 0) all = sum;
  __syncthreads();
  return all;
}

using PlaceScan = cub::BlockScan<int, kPlaceThreads, cub::BLOCK_SCAN_WARP_SCANS>;

/// A thread's list in a range.
struct PlacedList {
  std::int32_t number;
  ListItems items;
  ListPlace place;
  std::int32_t first_visit;
  std::int32_t order;  // of its first item there

  __device__ __forceinline__ ListItem item(int part) const {
    return list_item(place, items, number, part, first_visit, order);
  }
};

__device__ __forceinline__ ListItems items_in_range(const ListParams& p, int list, int range) {
  const int lists = num_lists(p);
  return {list < lists ? p.counts[range * std::int64_t{lists} + list] : 0, p.item_visits};
}

/// part_begins[i] = first + the items of the range in parts before i: part i has the i-th item of every list that has so
/// many. Returns all of them.
__device__ __forceinline__ int begin_parts(const ListParams& p, int range, int first, int (&part_begins)[kPlaceThreads],
                                           typename PlaceScan::TempStorage& storage) {
  part_begins[threadIdx.x] = 0;
  __syncthreads();
  for (int list = threadIdx.x; list < num_lists(p); list += kPlaceThreads) {
    const int items = items_in_range(p, list, range).items;
    if (items > 0) atomicAdd(&part_begins[items - 1], 1);
  }
  __syncthreads();
  int with_fewer, lists, begin, all;  // thread i: lists with up to i items, that is, without a part i
  PlaceScan(storage).ExclusiveSum(part_begins[threadIdx.x], with_fewer, lists);
  __syncthreads();
  PlaceScan(storage).ExclusiveSum(lists - with_fewer, begin, all);
  part_begins[threadIdx.x] = first + begin;
  __syncthreads();
  return all;
}

/// Puts the items of every thread's list in their places, part by part; part_begins move on. A CTA.
__device__ __forceinline__ void place_parts(const ListParams& p, const PlacedList& list,
                                            int (&part_begins)[kPlaceThreads],
                                            typename PlaceScan::TempStorage& storage) {
  for (int part = 0; __syncthreads_or(part < list.items.items) != 0; ++part) {
    const bool has_part = part < list.items.items;
    int rank, sum;
    PlaceScan(storage).ExclusiveSum(has_part ? 1 : 0, rank, sum);
    if (has_part) p.items[part_begins[part] + rank] = list.item(part);
    __syncthreads();
    if (threadIdx.x == 0) part_begins[part] += sum;
  }
}

/// CTAs [ranges]. The last one also leaves next_item zero.
__global__ void __launch_bounds__(kPlaceThreads, 1) place_items_kernel(const ListParams p) {
  static_assert(kMaxListRows / kListTileVisits <= kPlaceThreads, "parts of a list");
  __shared__ typename RangeSum::TempStorage sum_storage;
  __shared__ typename PlaceScan::TempStorage storage;
  __shared__ int part_begins[kPlaceThreads];
  wait_for_earlier_kernels();
  const int range = blockIdx.x, lists = num_lists(p);
  const std::uint64_t before = sum_earlier_ranges(p, range, lists, sum_storage);
  const auto first_item = static_cast<int>(before >> 32);
  const int num_items = begin_parts(p, range, first_item, part_begins, storage);
  auto visits = static_cast<int>(before);
  for (int first = 0; first < lists; first += kPlaceThreads) {
    const int number = first + threadIdx.x;
    PlacedList list{number, items_in_range(p, number, range)};
    int offset, sum;
    PlaceScan(storage).ExclusiveSum(list.items.count, offset, sum);
    if (list.items.count > 0) {
      list.place = find_list(p, number);
      list.first_visit = p.is_dense() ? DenseRows(p, list.place, range).begin : visits + offset;
      list.order = items_before(p, number, range);
      if (!p.is_dense()) p.begins[range * std::int64_t{lists} + number] = list.first_visit;
    }
    visits += sum;
    place_parts(p, list, part_begins, storage);
  }
  if (range == gridDim.x - 1 && threadIdx.x == 0) {
    *p.num_items = first_item + num_items;
    *p.next_item = 0;
  }
}

/// The rows of a word's bits, ascending, to `visits`; returns its end.
__device__ __forceinline__ std::int32_t* write_word(std::uint32_t word, std::int32_t first_row, std::int32_t* visits) {
  for (; word != 0; word &= word - 1) *visits++ = first_row + __ffs(static_cast<int>(word)) - 1;
  return visits;
}

/// The rows of a piece's bits.
__device__ __forceinline__ void write_piece(const uint4& words, std::int32_t first_row, std::int32_t* visits) {
  constexpr int kWordRows = RowsInBatch::kWordRows;
  visits = write_word(words.x, first_row, visits);
  visits = write_word(words.y, first_row + kWordRows, visits);
  visits = write_word(words.z, first_row + 2 * kWordRows, visits);
  write_word(words.w, first_row + 3 * kWordRows, visits);
}

__global__ void __launch_bounds__(kListWarps * 32) write_visits_kernel(const ListParams p) {
  wait_for_earlier_kernels();
  const WarpList warp(p);
  if (warp.begin >= warp.end) return;
  const int lane = threadIdx.x % 32, pieces = warp.end - warp.begin;
  std::int32_t* visits = p.visits + p.begins[warp.range * std::int64_t{num_lists(p)} + warp.list];
  for (int first = 0; first < pieces; first += 32) {
    const int i = first + lane;
    const uint4 words = i < pieces ? warp.bits[i] : uint4{0, 0, 0, 0};
    const int count = count_bits_of(words);
    int end = count;  // of the lane's visits among those of the warp
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(kFullWarp, end, distance);
      if (lane >= distance) end += other;
    }
    if (count > 0) {
      write_piece(words, p.first_row + (warp.begin + i) * RowsInBatch::kPieceRows, visits + end - count);
      warp.bits[i] = uint4{0, 0, 0, 0};
    }
    visits += __shfl_sync(kFullWarp, end, 31);
  }
}

}  // namespace openmsa::cuda::generic
