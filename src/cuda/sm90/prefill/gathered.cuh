// Attention of gathered pairs ("keys outside"): each work item is a kv_block and up to kMaxItemVisits queries of one KV
// head that want it. Keys and values are loaded once; tiles of 64 rows, the query heads of 64 / group_size queries, run
// past them. Every query leaves a partial o, normalised, and its log-sum-exp in its slot.
//
//   barrier       arrivals                       waited on by  guards
//   kv_full[i]    producer twice + bytes of k, v consumers     keys and values of stage i
//   kv_empty[i]   one thread per consumer        producer      all three warpgroups are done with stage i
//   q_full[i]     producer + bytes of q          one consumer  queries (and slots) of stage i
//   q_empty[i]    one thread of that consumer    producer      the partial o, staged where q was, has been read
//   named 1 to 3  128 threads of a warpgroup     the same      partial o is in shared memory before it is stored
//
// Per tile (head_dim 128, kv_block 128): products 1024 cycles of the tensor cores, 8192 exponentials 512 cycles; three
// warpgroups take turns, so that exponentials hide behind products. q in and o out are 32 KB per tile: the kernel is
// bound by the L2 cache and by writing partial results.
#pragma once

#include "cuda/sm90/prefill/params.h"
#include "cuda/sm90/ptx/tma_store.cuh"
#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/barrier.cuh"
#include "cuda/sm90/tile/load_keys.cuh"

namespace openmsa::cuda::sm90 {

template <class Element, int kDim, int kBlock>
struct GatheredConfig {
  using Tile = AttentionTile<Element, kDim, kBlock>;
  static constexpr int kConsumers = 3;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kKeyStages = 2;
  static constexpr int kQueryStages = 6;

  struct Storage {
    alignas(1024) Element k[kKeyStages][kBlock * kDim];
    alignas(1024) Element v[kKeyStages][kBlock * kDim];
    alignas(1024) Element q[kQueryStages][kRows * kDim];
    std::int32_t slots[kQueryStages][kRows];  // where each query of the tile leaves its partial result; -1: nobody
    std::int32_t counts[kKeyStages];          // visits of the item
    std::uint64_t kv_full[kKeyStages], kv_empty[kKeyStages], q_full[kQueryStages], q_empty[kQueryStages];
  };
};

/// Position in the sequence of query tiles that all consumers share in turn.
template <class Config>
struct QueryRing {
  int tile = 0;
  __device__ __forceinline__ int stage() const { return tile % Config::kQueryStages; }
  __device__ __forceinline__ std::uint32_t parity() const { return tile / Config::kQueryStages & 1; }
  __device__ __forceinline__ int consumer() const { return tile % Config::kConsumers; }
};

/// A work item with its visits, two per lane of the producer's warp.
struct ItemVisits {
  GatheredItem item;
  Visit visits[2];

  __device__ __forceinline__ void load(const PrefillParams& p, int number, int num_items, int lane) {
    if (number >= num_items) return;
    item = p.chunk.items[number];
    for (int i = 0; i < 2; ++i) {
      const int x = lane + 32 * i;
      visits[i] = x < item.count ? p.chunk.visits[item.begin + x] : Visit{0, -1};
    }
  }
  __device__ __forceinline__ Visit at(int x) const {  // all lanes together
    const int low_row = __shfl_sync(~0u, visits[0].q_row, x % 32), low_slot = __shfl_sync(~0u, visits[0].slot, x % 32);
    const int high_row = __shfl_sync(~0u, visits[1].q_row, x % 32),
              high_slot = __shfl_sync(~0u, visits[1].slot, x % 32);
    return x < 32 ? Visit{low_row, low_slot} : Visit{high_row, high_slot};
  }
};
static_assert(kMaxItemVisits <= 64);

/// Loads the queries of one tile, visits [begin, begin + count) of the item, with the producer's whole warp.
template <class Config>
__device__ __forceinline__ void load_visits(const PrefillParams& p, const CUtensorMap& map_q, const ItemVisits& item,
                                            int begin, int count, int stage, typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  const int lane = threadIdx.x % 32, group = 1 << p.log2_group_size, capacity = kRows >> p.log2_group_size;
  Visit mine[2];
  for (int i = 0; i < 2; ++i) {
    const int x = lane + 32 * i;
    mine[i] = item.at(min(begin + x, kMaxItemVisits - 1));
    if (x < capacity) storage.slots[stage][x] = x < count ? mine[i].slot : -1;
  }
  __syncwarp();
  if (lane == 0) {
    FullBarrier::arrive_and_expect_tx(&storage.q_full[stage],
                                      count * group * Tile::kDim * static_cast<int>(sizeof(typename Tile::Element)));
  }
  __syncwarp();
  for (int i = 0; i < 2; ++i) {
    const int x = lane + 32 * i;
    for (int h = 0; x < count && h < Tile::kHalves; ++h) {
      cute::SM90_TMA_LOAD_4D::copy(
          &map_q, &storage.q_full[stage], static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_LAST),
          &storage.q[stage][h * kRows * kHalf + x * group * kHalf], h * kHalf, p.chunk.head * group, mine[i].q_row, 0);
    }
  }
}

template <class Config>
__device__ __forceinline__ void produce_gathered(const PrefillParams& p, const CUtensorMap& map_q,
                                                 const CUtensorMap& map_k, const CUtensorMap& map_v,
                                                 typename Config::Storage& storage, int num_items) {
  using Tile = typename Config::Tile;
  using Element = typename Tile::Element;
  const int lane = threadIdx.x % 32, capacity = kRows >> p.log2_group_size;
  RingPosition<Config::kKeyStages> keys;
  QueryRing<Config> queries;
  ItemVisits current, next;
  next.load(p, blockIdx.x, num_items, lane);
  for (int number = blockIdx.x; number < num_items; number += gridDim.x) {
    current = next;
    next.load(p, number + gridDim.x, num_items, lane);
    const GatheredItem& item = current.item;
    if (lane == 0) {
      const SequenceView view = p.batch.sequence(item.sequence);
      const int first = item.block * Tile::kBlock;
      EmptyBarrier::wait(&storage.kv_empty[keys.stage], keys.parity ^ 1);
      storage.counts[keys.stage] = item.count;
      load_keys<Element, Tile::kDim, Tile::kBlock>(map_k, p.batch, item.sequence, view, first,
                                                   {p.key_box_rows, p.chunk.head}, storage.k[keys.stage],
                                                   &storage.kv_full[keys.stage]);
      load_keys<Element, Tile::kDim, Tile::kBlock>(map_v, p.batch, item.sequence, view, first,
                                                   {p.key_box_rows, p.chunk.head}, storage.v[keys.stage],
                                                   &storage.kv_full[keys.stage]);
    }
    __syncwarp();
    keys.advance();
    for (int begin = 0; begin < item.count; begin += capacity, ++queries.tile) {
      EmptyBarrier::wait(&storage.q_empty[queries.stage()], queries.parity() ^ 1);
      load_visits<Config>(p, map_q, current, begin, min(capacity, item.count - begin), queries.stage(), storage);
    }
  }
}

/// Stores the staged partial results of a tile, one box of group_size rows per query and half, with one warp.
template <class Config>
__device__ __forceinline__ void store_partials(const PrefillParams& p, const CUtensorMap& map_partial, int stage,
                                               typename Config::Storage& storage, int lane) {
  using Tile = typename Config::Tile;
  const int group = 1 << p.log2_group_size, capacity = kRows >> p.log2_group_size;
  for (int x = lane; x < capacity; x += 32) {
    const int slot = storage.slots[stage][x];
    for (int h = 0; slot >= 0 && h < Tile::kHalves; ++h) {
      tma_store_4d(map_partial, cute::TMA::CacheHintSm90::EVICT_FIRST,
                   &storage.q[stage][h * kRows * kHalf + x * group * kHalf], h * kHalf, slot * group, 0, 0);
    }
  }
  cute::tma_store_arrive();
}

template <class Config>
__device__ __forceinline__ void consume_gathered(const PrefillParams& p, const CUtensorMap& map_partial,
                                                 typename Config::Storage& storage, int num_items, int consumer) {
  using namespace cute;
  using Tile = typename Config::Tile;
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const int capacity = kRows >> p.log2_group_size;
  const int row0 = warp * 16 + lane / 4, row1 = row0 + 8;
  RingPosition<Config::kKeyStages> keys;
  QueryRing<Config> queries;
  int staged = -1;  // stage whose partial results are on their way to memory
  const auto release_staged = [&] {
    if (warp != 0 || staged < 0) return;
    tma_store_wait<0>();
    __syncwarp();
    if (lane == 0) EmptyBarrier::arrive(&storage.q_empty[staged]);
  };

  for (int number = blockIdx.x; number < num_items; number += gridDim.x) {
    FullBarrier::wait(&storage.kv_full[keys.stage], keys.parity);
    const int count = storage.counts[keys.stage];
    for (int begin = 0; begin < count; begin += capacity, ++queries.tile) {
      if (queries.consumer() != consumer) continue;
      const int stage = queries.stage();
      FullBarrier::wait(&storage.q_full[stage], queries.parity());
      typename Tile::Scores s;
      Tile::start_scores(storage.q[stage], storage.k[keys.stage], s, thread);
      release_staged();
      warpgroup_wait<0>();
      warpgroup_fence_operand(s);

      RowSoftmax softmax0, softmax1;
      softmax0.template update<Tile>(s, 0, p.scale_log2);
      softmax1.template update<Tile>(s, 1, p.scale_log2);
      typename Tile::Values o;
      const auto probabilities = Tile::round_scores(s);
      Tile::start_values(probabilities, storage.v[keys.stage], o, false, thread);
      const float sum0 = quad_sum(softmax0.sum), sum1 = quad_sum(softmax1.sum);
      if (lane % 4 == 0) {
        const int slot0 = storage.slots[stage][row0 >> p.log2_group_size];
        const int slot1 = storage.slots[stage][row1 >> p.log2_group_size];
        const int mask = (1 << p.log2_group_size) - 1;
        if (slot0 >= 0) p.chunk.partial_lse[(slot0 << p.log2_group_size) + (row0 & mask)] = softmax0.max + log2f(sum0);
        if (slot1 >= 0) p.chunk.partial_lse[(slot1 << p.log2_group_size) + (row1 & mask)] = softmax1.max + log2f(sum1);
      }
      warpgroup_wait<0>();
      warpgroup_fence_operand(o);
      Tile::store_values(o, 1 / sum0, 1 / sum1, storage.q[stage], thread);
      tma_store_fence();
      cutlass::arch::NamedBarrier::sync(128, 1 + consumer);
      if (warp == 0) store_partials<Config>(p, map_partial, stage, storage, lane);
      staged = stage;
    }
    if (thread == 0) EmptyBarrier::arrive(&storage.kv_empty[keys.stage]);
    keys.advance();
  }
  if (warp == 0) tma_store_wait<0>();
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    gathered_kernel(const PrefillParams p, const __grid_constant__ CUtensorMap map_q,
                    const __grid_constant__ CUtensorMap map_k, const __grid_constant__ CUtensorMap map_v,
                    const __grid_constant__ CUtensorMap map_partial) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  if (threadIdx.x == 0) {
    init_ring(storage.kv_full, storage.kv_empty, Config::kConsumers, 2);
    init_ring(storage.q_full, storage.q_empty, 1);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  cudaGridDependencySynchronize();

  const int num_items = *p.chunk.num_items;
  // 65536 registers of the block: 56 x 128 for the producer, 152 x 384 for the consumers.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<56>();
    if (threadIdx.x < 32) produce_gathered<Config>(p, map_q, map_k, map_v, storage, num_items);
  } else {
    cutlass::arch::warpgroup_reg_alloc<152>();
    consume_gathered<Config>(p, map_partial, storage, num_items, threadIdx.x / 128 - 1);
  }
}

}  // namespace openmsa::cuda::sm90
