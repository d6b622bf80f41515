// Attention of a decode step over the chosen kv_blocks.
//
// A cluster of CTAs takes a few query rows of one sequence and one KV head. Each of its CTAs chooses the kv_blocks from
// the candidates of the index branch (or reads topk_indices), unites those of all queries, and takes every S-th key
// tile of 64 keys of the union. One warp loads k and v of a key tile; the others hold the heads of one query each, and
// one of kKeySlices slices of the tile's keys, with a running softmax of their own (warp_attention.cuh). At the end the
// partial results are sent through the shared memory of the cluster, where every CTA combines some of the channels
// (combine.cuh).
//
//   barrier     arrivals                         waited on by   guards
//   full[i]     producer + bytes of k and v      consumers      stage i has arrived
//               (+ 32 lanes per kind of scale)
//   empty[i]    one lane of each consumer        producer       all consumers are done with stage i
//   CTA         all threads                      the same       chosen kv_blocks and their union are complete
//   received    this CTA + bytes from all        all threads    partial results of the cluster have arrived
//   cluster     all threads of the cluster       the same       all CTAs run; between parts, all are done
//
// Bound by memory and, for a single sequence, by the chain lists -> kv_blocks -> pages -> keys of dependent loads.
#pragma once

#include <cooperative_groups.h>
#include <cutlass/arch/barrier.h>

#include <cute/arch/cluster_sm90.hpp>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/sm90/decode/attend_config.cuh"
#include "cuda/sm90/decode/combine.cuh"
#include "cuda/sm90/decode/key_tiles.cuh"
#include "cuda/sm90/decode/query_union.cuh"
#include "cuda/sm90/decode/read_choice.cuh"
#include "cuda/sm90/decode/warp_attention.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace openmsa::cuda::sm90::decode {

/// The next query rows that a cluster attends to, of one sequence: of the group_queries rows side by side that are
/// its own; in a mixture of the groups of the sequences that are served, which are dealt out over the clusters. Clusters
/// [rows][KV head]. `at` is where to go on, -1 at first. A part without rows is the end.
__device__ __forceinline__ QueryPart next_part(const AttendParams& p, std::int32_t& at, std::int32_t& head, int lane) {
  const auto ctas = static_cast<std::int32_t>(cooperative_groups::this_cluster().num_blocks());
  const std::int32_t number = static_cast<std::int32_t>(blockIdx.x) / ctas;
  if (p.select.served.is_open()) {
    head = number % p.select.heads;
    const std::int32_t first = number / p.select.heads * p.select.group_queries;
    const std::int32_t row = at < 0 ? first : at, end = min(first + p.select.group_queries, p.select.batch.total_q);
    if (row >= end) return {};
    const QueryPart part = find_part(p.select, row, end, lane);
    at = row + part.count;
    return part;
  }
  at = at < 0 ? number : at + static_cast<std::int32_t>(gridDim.x) / ctas;
  head = at % p.select.heads;
  return find_group(p.select, at / p.select.heads, lane);
}

/// CTAs [cluster][CTA of the cluster].
template <class Config>
__global__ void __maxnreg__(Config::kMaxRegisters)
    attend_kernel(const __grid_constant__ AttendParams p, const __grid_constant__ CUtensorMap map_k,
                  const __grid_constant__ CUtensorMap map_v) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  const auto cluster = cooperative_groups::this_cluster();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  STAMP_N(1);
  if (threadIdx.x == 0) STAMP(1, stamp_n, 0);
  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(&map_k);
    cute::prefetch_tma_descriptor(&map_v);
    const int scales = (p.k_scale.is_per_token() ? 32 : 0) + (p.v_scale.is_per_token() ? 32 : 0);
    init_ring(storage.full, storage.empty, Config::kConsumers, 1 + scales);
    FullBarrier::init(&storage.received.full, 1);
    cutlass::arch::fence_barrier_init();
  }
  if (threadIdx.x < Config::kQueries) storage.chosen.gathered[threadIdx.x] = 0;
  __syncthreads();

  const BatchView& batch = p.select.batch;
  const auto rank = static_cast<std::int32_t>(cluster.block_rank());
  cute::cluster_arrive_relaxed();  // the others' memory must not be written before they run
  constexpr int kWarps = Config::kConsumers + 1;
  const bool is_layer = p.select.lists.ranked != nullptr;
  if (!is_layer) wait_for_earlier_kernels();
  // Read long before it is wanted, at the end.
  const bool has_value_scale = Config::kIsQuantized && p.v_scale.is_for_all();
  const float value_scale = has_value_scale ? *p.v_scale.data : 1;
  const ChannelShare share(Config::kVectors, static_cast<int>(cluster.num_blocks()));
  PipelineState<Config::kStages> ring;
  STAMP_SET(ring, stamp_n);
  std::uint32_t round = 0;
  for (std::int32_t at = -1, head = 0;; ++round) {  // mostly one
    const QueryPart part = next_part(p, at, head, lane);
    if (part.count == 0) break;
    const bool is_first = round == 0;
    if (!is_first) {  // copies and results go where those of the last part are
      cutlass::arch::fence_view_async_shared();
      cluster.sync();
    }
    std::conditional_t<Config::kIsGroup, GroupQuery<Config>, Nothing> query;
    if constexpr (Config::kIsGroup) {  // an input of the layer: before it is let go, the index branch has waited for those
      if (warp != Config::kConsumers) query.read(p, part.row, head, threadIdx.x);
    }
#ifdef OPENMSA_WARM
    if (is_first && is_layer && p.warm[0] != nullptr && part.sequence < batch.batch) {
      const int pages = (part.view.seqlen_k + batch.page_size - 1) >> log2_of(batch.page_size);
      const int step = static_cast<int>(cluster.num_blocks()) * Config::kThreads;
      for (int i = rank * Config::kThreads + threadIdx.x; i < pages; i += step) {
        const std::int64_t at = batch.page(part.sequence, i) * p.warm_stride;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p.warm[0] + at));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p.warm[1] + at));
      }
    }
#endif
    if (is_layer) {
      const ChoiceTeam team(part.count, kWarps, warp);
      const ChoiceRow choice = choice_row(p.select, part, min(team.row, part.count - 1), head);
      // Only now: before it wrote candidates the index branch has waited for those who wrote the lengths.
      if (is_first) wait_for_earlier_kernels();
      if (threadIdx.x == 0) STAMP(1, stamp_n, 1);
      choose_blocks(storage.chosen, storage.scratch, part.count, team, choice, lane);
    } else {
      read_choice<kWarps>(p.select, part, head, storage.chosen, warp, lane);
    }
    if (is_first) let_next_kernel_start();
    if constexpr (Config::kIsGroup) {
      if (warp != Config::kConsumers) query.place(storage.group, threadIdx.x);
    }
    cutlass::arch::fence_view_async_shared();  // stages are loaded where the scratch memory was; wgmma reads the query
    if constexpr (Config::kIsGroup) {
      __syncthreads();
    } else {
      unite<Config::kThreads>(storage.chosen, part.count, p.select.rules.topk, storage.united, threadIdx.x);
    }
    if (threadIdx.x == 0) STAMP(1, stamp_n, 2);
    const std::int32_t shift = batch.block_size == kTileKeys ? 0 : 1;
    const KeyTiles tiles{rank, storage.block_count() << shift, static_cast<std::int32_t>(cluster.num_blocks()), shift};
    std::conditional_t<Config::kIsGroup, GroupAttention<Config>, WarpAttention<Config>> attention;  // of a consumer
    if (warp == Config::kConsumers) {
      produce_key_tiles<Config>(p, map_k, map_v, storage, part, tiles, head, ring, lane);
      if (rank == 0) store_part<Config>(p.select, storage, part, head, lane);
    } else if constexpr (Config::kIsGroup) {
      consume_key_tiles<Config>(p, storage, part, tiles, ring, attention, warp, lane);
    } else {
      consume_key_tiles<Config>(p, storage, part, tiles, head, ring, attention, warp, lane);
    }
    __syncthreads();
    if (warp != Config::kConsumers) {
      if constexpr (Config::kIsGroup) {
        attention.store(storage.partial, value_scale, warp, lane);
      } else {
        attention.store(storage.partial, warp % Config::kKeySlices, warp / Config::kKeySlices * 16, value_scale, lane);
      }
    }
    __syncthreads();
    if (is_first) cute::cluster_wait();
    if (threadIdx.x == 0) expect_partials<Config>(storage.received, share, part.count * 16);
    send_partial<Config>(storage.partial, storage.received, share, part.count * 16);
    if (threadIdx.x == 0) STAMP(1, stamp_n, 7);
    await_partials<Config>(storage.received, round % 2);
    if (threadIdx.x == 0) STAMP(1, stamp_n, 8);
    combine_cluster<Config>(p, storage.received, share, part, head);
    if (threadIdx.x == 0) STAMP(1, stamp_n, 9);
  }
  if (threadIdx.x == 0) STAMP_END(1);
  if (round == 0) {  // nothing to do, which takes as long as everything before
    if (is_layer) wait_for_earlier_kernels();
    cute::cluster_wait();
  }
}

}  // namespace openmsa::cuda::sm90::decode
