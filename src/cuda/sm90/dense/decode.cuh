// Dense attention of a decode step: segments (split.h) of all keys, and their merge.
//
// A CTA per SM goes along its segments. One warp loads k and v of each key tile of 64 keys; the others hold the heads of
// one query each, and one of kKeySlices slices of the tile's keys (decode/warp_attention.cuh). At the end of a segment
// its slices are added up, and written as o where the segment is a whole item, else into a slot. A second kernel merges
// the slots of an item.
//
//   barrier        arrivals                         waited on by   guards
//   task_full[i]   producer                         consumers      a segment and its item; the next one's come early
//   task_empty[i]  one lane of each consumer        producer       its result is written
//   full[i]        producer + bytes of k and v      consumers      stage i has arrived
//                  (+ 32 lanes per kind of scale)
//   empty[i]       one lane of each consumer        producer       all consumers are done with stage i
//   kConsumers     all consumers                    the same       slices are written; are added up
//
// Bound by memory: a key tile of 32 KB takes an SM some 1850 cycles of its share of the bandwidth, one query's products
// and softmax 600 beside it. The producer does not stop between segments.
#pragma once

#include <cutlass/arch/barrier.h>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm90/decode/attend_config.cuh"
#include "cuda/sm90/decode/key_tiles.cuh"
#include "cuda/sm90/decode/warp_attention.cuh"
#include "cuda/sm90/dense/item_finder.cuh"
#include "cuda/sm90/dense/params.h"
#include "cuda/sm90/dense/partial_sum.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace openmsa::cuda::sm90::dense {

/// Named barriers of the table above.
enum class DecodeBarrier {
  kConsumers = 1,
};

/// A segment to work off; the producer puts it where the consumers read it.
struct Task {
  Item item;
  Segment segment;
  decode::KeyTiles tiles;  // as far as the item's queries see them
  bool exists;
};

/// One query has a warpgroup; several have a warp each.
template <class Element, class Cached, int kDim, int kQueries>
struct DecodeConfig : decode::AttendConfig<Element, Cached, kDim, kQueries> {
  using Base = decode::AttendConfig<Element, Cached, kDim, kQueries>;
  static constexpr bool kIsDense = true;
  static constexpr int kStages = 4;
  static constexpr int kTasks = 2;

  struct Storage {
    typename Base::Stage stages[kStages];
    typename Base::Group group;
    typename Base::Partial partial;  // of the segment that has ended
    float k_scale[kStages][decode::kTileKeys];
    float v_scale[kStages][decode::kTileKeys];
    Task tasks[kTasks];
    std::uint64_t full[kStages], empty[kStages], task_full[kTasks], task_empty[kTasks];
  };
};

/// The key tiles of a segment, as far as the item's queries see them.
__device__ __forceinline__ decode::KeyTiles visible_tiles(const Item& item, const Segment& segment) {
  const std::int32_t seen = max(item.part.position + item.part.count, 0);
  return {segment.begin, min(segment.end, (seen + kUnitKeys - 1) / kUnitKeys), 1, 0};
}

/// Loads the keys of this CTA's segments; a warp calls it.
template <class Config>
__device__ __forceinline__ void produce_segments(const DecodeParams& p, const CUtensorMap& map_k,
                                                 const CUtensorMap& map_v, typename Config::Storage& storage,
                                                 int lane) {
  ItemFinder finder(p.select.batch, p.tile_queries, p.select.heads, lane);
  const auto cta = static_cast<std::int32_t>(blockIdx.x);
  const std::int64_t per_cta = units_per_cta(finder.units(), p.ctas);
  PipelineState<Config::kTasks> at;
  const auto publish = [&](const Task& task) {
    EmptyBarrier::wait(&storage.task_empty[at.stage], at.phase ^ 1);
    if (lane == 0) {
      storage.tasks[at.stage] = task;
      EmptyBarrier::arrive(&storage.task_full[at.stage]);
    }
    at.advance();
  };
  PipelineState<Config::kStages> ring;
  for (std::int64_t unit = cta * per_cta, end = min(finder.units(), unit + per_cta); unit < end;) {
    const Item item = finder.find(unit);
    const Segment segment(item.units, per_cta, cta);
    const decode::KeyTiles tiles = visible_tiles(item, segment);
    publish({item, segment, tiles, true});
    decode::produce_key_tiles<Config>(p, map_k, map_v, storage, item.part, tiles, item.head, ring, lane);
    unit = item.units.begin + segment.end;
  }
  publish({{}, {{0, 0}, 0, 0}, {}, false});
}

/// Adds up the slices of a segment and writes the sum: to o and lse, or to the CTA's slot.
template <class Config>
__device__ __forceinline__ void write_segment(const DecodeParams& p, const typename Config::Partial& partial,
                                              const Task& task) {
  const int slot = static_cast<int>(blockIdx.x) * kSlots + task.segment.slot();
  const int rows = task.item.part.count * 16, first_head = task.item.head << p.log2_group_size;
  for (int i = threadIdx.x; i < rows * Config::kVectors; i += 32 * Config::kConsumers) {
    const int row = i / Config::kVectors, channel = i % Config::kVectors * 4, head_of_group = row % 16;
    if (head_of_group >> p.log2_group_size != 0) continue;
    PartialSum sum;
#pragma unroll
    for (int slice = 0; slice < Config::kKeySlices; ++slice) {
      sum.add(partial.max[slice][row], partial.total(slice, row),
              *reinterpret_cast<const float4*>(&partial.o[slice][row][channel]));
    }
    if (task.segment.is_whole) {
      sum.write<typename Config::Element>(p.out, task.item.part.row + row / 16, first_head + head_of_group, channel);
    } else {
      const std::int64_t place = std::int64_t{slot} * Config::kRows + row;
      *reinterpret_cast<float4*>(p.partial_o + place * Config::kDim + channel) = sum.o;
      if (channel == 0) p.partial_weight[place] = make_float2(sum.max, sum.sum);
    }
  }
}

template <class Config>
__device__ __forceinline__ void consume_segments(const DecodeParams& p, typename Config::Storage& storage, int warp,
                                                 int lane) {
  constexpr int kThreads = 32 * Config::kConsumers;
  const bool is_scaled = Config::kIsQuantized && p.v_scale.is_for_all();
  PipelineState<Config::kTasks> at;
  PipelineState<Config::kStages> ring;
  for (;; at.advance()) {
    FullBarrier::wait(&storage.task_full[at.stage], at.phase);
    const Task& task = storage.tasks[at.stage];
    if (!task.exists) return;
    const float value_scale = is_scaled ? *p.v_scale.data : 1;
    if constexpr (Config::kIsGroup) {
      decode::GroupQuery<Config> query;
      query.read(p, task.item.part.row, task.item.head, threadIdx.x);
      query.place(storage.group, threadIdx.x);
      cutlass::arch::fence_view_async_shared();
      sync(DecodeBarrier::kConsumers, kThreads);
      decode::GroupAttention<Config> attention;
      decode::consume_key_tiles<Config>(p, storage, task.item.part, task.tiles, ring, attention, warp, lane);
      attention.store(storage.partial, value_scale, warp, lane);
    } else {
      decode::WarpAttention<Config> attention;
      decode::consume_key_tiles<Config>(p, storage, task.item.part, task.tiles, task.item.head, ring, attention, warp,
                                        lane);
      attention.store(storage.partial, 0, warp * 16, value_scale, lane);
    }
    sync(DecodeBarrier::kConsumers, kThreads);
    write_segment<Config>(p, storage.partial, task);
    sync(DecodeBarrier::kConsumers, kThreads);
    if (lane == 0) EmptyBarrier::arrive(&storage.task_empty[at.stage]);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    decode_kernel(const __grid_constant__ DecodeParams p, const __grid_constant__ CUtensorMap map_k,
                  const __grid_constant__ CUtensorMap map_v) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  init_barriers([&] {
    const int scales = (p.k_scale.is_per_token() ? 32 : 0) + (p.v_scale.is_per_token() ? 32 : 0);
    init_ring(storage.full, storage.empty, Config::kConsumers, 1 + scales);
    init_ring(storage.task_full, storage.task_empty, Config::kConsumers);
  });
  wait_for_earlier_kernels();
  let_next_kernel_start();
  if (warp == Config::kConsumers) {
    produce_segments<Config>(p, map_k, map_v, storage, lane);
  } else {
    consume_segments<Config>(p, storage, warp, lane);
  }
}

inline constexpr int kMergeWarps = 8;

/// CTAs [CTA of decode_kernel][rows of an item, a warp each]: merges the item that begins in that CTA and goes on in the
/// next one.
template <class Element, int kDim>
__global__ void __launch_bounds__(32 * kMergeWarps) merge_kernel(const __grid_constant__ DecodeParams p) {
  const int lane = threadIdx.x % 32, row = static_cast<int>(blockIdx.y) * kMergeWarps + threadIdx.x / 32;
  const int head_of_group = row % 16, channel = lane * 4;
  const auto cta = static_cast<std::int32_t>(blockIdx.x);
  wait_for_earlier_kernels();
  let_next_kernel_start();

  ItemFinder finder(p.select.batch, p.tile_queries, p.select.heads, lane);
  const std::int64_t per_cta = units_per_cta(finder.units(), p.ctas), last = (cta + 1) * per_cta - 1;
  if (last >= finder.units()) return;
  const Item item = finder.find(last);
  const Segment segment(item.units, per_cta, cta);
  if (segment.is_whole || !segment.begins_item()) return;
  if (row / 16 >= item.part.count || head_of_group >> p.log2_group_size != 0 || channel >= kDim) return;

  const std::int32_t rows = 16 * p.tile_queries,
                     last_cta = static_cast<std::int32_t>(divide(item.units.end - 1, per_cta));
  PartialSum sum;
#pragma unroll 4
  for (std::int32_t i = cta; i <= last_cta; ++i) {
    const std::int64_t place = (std::int64_t{i} * kSlots + (i == cta ? 1 : 0)) * rows + row;
    const float2 weight = p.partial_weight[place];
    sum.add(weight.x, weight.y, *reinterpret_cast<const float4*>(p.partial_o + place * kDim + channel));
  }
  sum.write<Element>(p.out, item.part.row + row / 16, (item.head << p.log2_group_size) + head_of_group, channel);
}

}  // namespace openmsa::cuda::sm90::dense
