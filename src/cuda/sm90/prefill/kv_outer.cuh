// Attention with kv_blocks in the outer loop: each work item is a kv_block and some queries of one KV head that want
// it. Keys and values are loaded once; tiles of 64 rows, the query heads of 64 / group_size queries, run past them.
// Every query leaves a partial o, normalised, and its log-sum-exp in its slot.
//
//   barrier       arrivals                       waited on by  guards
//   kv_full[i]    warp 0, twice, + bytes         consumers     keys and values of stage i
//                 (e4m3: warps 1 to 3)
//   raw_full[i]   warp 0, twice, + bytes         warps 1 to 3  the same in e4m3, and scales
//                 (thrice where tokens have scales)
//   kv_empty[i]   every consumer warp            warp 0        all three warpgroups are done with stage i
//   q_full[i]     32 lanes + bytes of q          one consumer  queries and slots of stage i
//   q_empty[i]    that consumer's four warps     its producer  the partial o, staged where q was, has been read
//
// Producers: warp 0 loads keys and values, warps 1 to 3 each the queries of one consumer, which has two stages of its
// own.
//
// Keys and values in e4m3 become 16 bits wide where they lie (tile/widen.cuh), by warps 1 to 3 before they load the
// queries of the item: its first queries come later by that, when each consumer has two tiles of the item before yet.
//
// Per tile (head_dim 128, kv_block 128): products 1024 cycles of the tensor cores, 8192 exponentials 512 cycles; three
// warpgroups take turns, so that exponentials hide behind products. 16 KB of q come in from the L2 cache and 16 KB of
// partial results go out to memory: with many pairs the link between the two halves of the L2 cache is the bound.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm90/prefill/cached_tile.cuh"
#include "cuda/sm90/prefill/params.h"
#include "cuda/sm90/ptx/async_copy.cuh"
#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/load_keys.cuh"
#include "cuda/sm90/tile/partial_row.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/softmax.cuh"

namespace openmsa::cuda::sm90::prefill {

/// Cached_: element type of k and v in memory.
template <class Element, class Cached_, int kDim, int kBlock>
struct KvOuterConfig {
  using Cached = Cached_;
  using Tile = CachedTile<Element, Cached, kDim, kBlock>;
  static constexpr bool kIsQuantized = sizeof(Cached) == 1;
  static constexpr int kConsumers = 3;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kKeyStages = 2;
  static constexpr int kTurns = 2;  // stages of queries of each consumer
  static constexpr int kQueryStages = kTurns * kConsumers;
  static constexpr int kKeyElements = cached_tile_elements<Cached, kDim, kBlock>();

  struct WidenStorage {
    alignas(16) float k_scale[kKeyStages][kBlock];  // where tokens have one each
    float v_unit[kKeyStages];
    std::uint64_t raw_full[kKeyStages];
  };
  struct Storage {
    alignas(1024) Element k[kKeyStages][kKeyElements];
    alignas(1024) Element v[kKeyStages][kKeyElements];
    alignas(1024) Element q[kQueryStages][kWarpgroupRows * kDim];
    std::int32_t slots[kQueryStages]
                      [kWarpgroupRows];  // where each query of the tile leaves its partial result; -1: nobody
    std::int32_t counts[kKeyStages];     // visits of the item
    std::uint64_t kv_full[kKeyStages], kv_empty[kKeyStages], q_full[kQueryStages], q_empty[kQueryStages];
    std::conditional_t<kIsQuantized, WidenStorage, Nothing> widen;
  };
  static constexpr std::size_t kSharedBytes = shared_bytes<Cached, Storage>();
  static_assert(kSharedBytes <= 227 << 10);
};

/// Every `step`-th tile of up to 64 rows of the CTA's work items, beginning with tile `first`, for a warp. The next
/// item and the next tile's visits are on their way while a tile is worked on.
class TileStream {
 public:
  __device__ __forceinline__ TileStream(const AttendParams& p, int num_items, int first, int step)
      : p_(p), num_items_(num_items), capacity_(kWarpgroupRows >> p.log2_group_size), step_(step), number_(blockIdx.x) {
    item_ = load_item(number_);
    next_item_ = load_item(number_ + gridDim.x);
    seek(first * capacity_);
  }
  __device__ __forceinline__ bool done() const { return number_ >= num_items_; }
  /// The item of the tile.
  __device__ __forceinline__ int number() const { return number_; }
  __device__ __forceinline__ int count() const { return min(capacity_, item_.count - begin_); }
  /// Query lane + 32 * i of the tile; slot -1: none.
  __device__ __forceinline__ Visit visit(int i) const { return visits_[i]; }
  __device__ __forceinline__ void advance() { seek(begin_ + step_ * capacity_); }

 private:
  __device__ __forceinline__ KvOuterItem load_item(int number) const {
    return number < num_items_ ? p_.work.items[number] : KvOuterItem{0, 0, 0, 0};
  }
  /// To visit `begin` of the item, or as many whole tiles past its end.
  __device__ __forceinline__ void seek(int begin) {
    while (!done() && begin >= item_.count) {
      begin -= (item_.count + capacity_ - 1) / capacity_ * capacity_;
      item_ = next_item_;
      number_ += gridDim.x;
      next_item_ = load_item(number_ + gridDim.x);
    }
    begin_ = begin;
    for (int i = 0; i < 2; ++i) {
      const int x = threadIdx.x % 32 + 32 * i;
      visits_[i] = x < capacity_ && begin + x < item_.count ? p_.work.visits[item_.begin + begin + x] : Visit{0, -1};
    }
  }

  const AttendParams& p_;
  const int num_items_, capacity_, step_;
  int number_, begin_;
  KvOuterItem item_, next_item_;
  Visit visits_[2];
};

/// Loads the queries of a tile, one copy each (one per half where a query has less than 8 rows).
template <class Config>
__device__ __forceinline__ void load_tile_queries(const AttendParams& p, const CUtensorMap& map_q,
                                                  const Visit (&visits)[2], int count, int stage,
                                                  typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  const int lane = threadIdx.x % 32, group = 1 << p.log2_group_size, capacity = kWarpgroupRows >> p.log2_group_size;
  const int head = p.work.head * group, copies = group < 8 ? Tile::kHalves : 1;
  for (int i = 0; i < 2; ++i) {
    if (lane + 32 * i < capacity) storage.slots[stage][lane + 32 * i] = visits[i].slot;
  }
  if (lane == 0) {
    FullBarrier::arrive_and_expect_tx(&storage.q_full[stage],
                                      count * group * Tile::kDim * static_cast<int>(sizeof(typename Tile::Element)));
  } else {
    EmptyBarrier::arrive(&storage.q_full[stage]);
  }
  for (int i = 0; i < 2; ++i) {
    const int row = (lane + 32 * i) * group;
    for (int h = 0; visits[i].slot >= 0 && h < copies; ++h) {
      cute::SM90_TMA_LOAD_5D::copy(
          &map_q, &storage.q_full[stage], static_cast<std::uint64_t>(CacheHintSm90::EVICT_LAST),
          &storage.q[stage][(row / 8 * Tile::kHalves + h) * 8 * kPanelChannels + row % 8 * kPanelChannels], 0, head % 8,
          h, head / 8, visits[i].q_row);
    }
  }
}

/// Keys and values of the CTA's work items; one thread.
template <class Config>
__device__ __forceinline__ void produce_keys(const AttendParams& p, const CUtensorMap& map_k, const CUtensorMap& map_v,
                                             typename Config::Storage& storage, int num_items) {
  using Tile = typename Config::Tile;
  using Element = typename Tile::Element;
  const KeyBoxes boxes{p.key_box_rows, p.work.head};
  PipelineState<Config::kKeyStages> ring;
  for (int number = blockIdx.x; number < num_items; number += gridDim.x, ring.advance()) {
    const KvOuterItem item = p.work.items[number];
    const SequenceView view = p.batch.sequence(item.sequence);
    const int first = item.block * Tile::kBlock, stage = ring.stage;
    EmptyBarrier::wait(&storage.kv_empty[stage], ring.phase ^ 1);
    storage.counts[stage] = item.count;
    load_keys<Element, Tile::kDim, Tile::kBlock>(map_k, p.batch, item.sequence, view, first, boxes, storage.k[stage],
                                                 &storage.kv_full[stage]);
    load_keys<Element, Tile::kDim, Tile::kBlock>(map_v, p.batch, item.sequence, view, first, boxes, storage.v[stage],
                                                 &storage.kv_full[stage]);
  }
}

/// The same in e4m3, with the scales of tokens; a warp.
template <class Config>
__device__ __forceinline__ void produce_e4m3_keys(const AttendParams& p, const CUtensorMap& map_k,
                                                  const CUtensorMap& map_v, typename Config::Storage& storage,
                                                  int num_items, int lane) {
  using Tile = typename Config::Tile;
  using Cached = typename Config::Cached;
  using Widened = WidenedTile<Tile::kDim, Tile::kBlock>;
  PipelineState<Config::kKeyStages> ring;
  for (int number = blockIdx.x; number < num_items; number += gridDim.x, ring.advance()) {
    const KvOuterItem item = p.work.items[number];
    const SequenceView view = p.batch.sequence(item.sequence);
    const int used = min(Tile::kBlock, view.seqlen_k - item.block * Tile::kBlock), stage = ring.stage;
    const BlockPages<Tile::kBlock> pages(p.batch, item.sequence, view.seqlen_k, item.block, true, lane);
    const BlockScales<Tile::kBlock> scales(p, pages, 0, used, lane);
    std::uint64_t* const full = &storage.widen.raw_full[stage];
    EmptyBarrier::wait(&storage.kv_empty[stage], ring.phase ^ 1);
    if (lane == 0) storage.counts[stage] = item.count;
    pages.template load<Tile::kDim>(map_k, p.work.head, 0, used, Widened::template source<Cached>(storage.k[stage]),
                                    full);
    pages.template load<Tile::kDim>(map_v, p.work.head, 0, used, Widened::template source<Cached>(storage.v[stage]),
                                    full);
    if (!has_scales_of_tokens(p)) continue;
    if (p.k_scale.is_per_token()) scales.store_keys(storage.widen.k_scale[stage], lane);
    if (p.v_scale.is_per_token()) {
      ValueUnit unit;
      unit.raise(scales.largest_of_values());
      scales.template store_shares<Widened>(unit, storage.v[stage], lane);
      if (lane == 0) storage.widen.v_unit[stage] = unit.value();
    }
    __syncwarp();
    if (lane == 0) EmptyBarrier::arrive(full);
  }
}

/// The share of query warp `number` of an item's keys and values.
template <class Config>
__device__ __forceinline__ void widen_item(const AttendParams& p, typename Config::Storage& storage,
                                           PipelineState<Config::kKeyStages> at, int number, int lane) {
  using Tile = typename Config::Tile;
  FullBarrier::wait(&storage.widen.raw_full[at.stage], at.phase);
  widen_keys<Tile>(storage.k[at.stage], number, Config::kConsumers, lane);
  widen_values<Tile>(p, storage.v[at.stage], number, Config::kConsumers, lane);
  finish_widening(&storage.kv_full[at.stage], lane);
}

/// Queries of one consumer; a warp.
template <class Config>
__device__ __forceinline__ void produce_queries(const AttendParams& p, const CUtensorMap& map_q,
                                                typename Config::Storage& storage, int num_items, int consumer) {
  PipelineState<Config::kTurns> turn;
  TileStream tiles(p, num_items, consumer, Config::kConsumers);
  const auto load_next = [&] {
    const int stage = turn.stage * Config::kConsumers + consumer, count = tiles.count();
    const Visit visits[2] = {tiles.visit(0), tiles.visit(1)};
    tiles.advance();
    EmptyBarrier::wait(&storage.q_empty[stage], turn.phase ^ 1);
    load_tile_queries<Config>(p, map_q, visits, count, stage, storage);
    turn.advance();
  };
  if constexpr (Config::kIsQuantized) {
    PipelineState<Config::kKeyStages> keys;
    for (int number = blockIdx.x; number < num_items; number += gridDim.x, keys.advance()) {
      widen_item<Config>(p, storage, keys, consumer, threadIdx.x % 32);
      while (tiles.number() == number) load_next();
    }
  } else {
    while (!tiles.done()) load_next();
  }
}

/// Stores the staged partial results of a warp's queries, one copy each. A warp owns 16 rows, all heads of its queries.
template <class Config>
__device__ __forceinline__ void store_partials(const AttendParams& p, int stage, int warp, int lane,
                                               typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  using Element = typename Tile::Element;
  const int queries = 16 >> p.log2_group_size, elements = Tile::kDim << p.log2_group_size;
  const int x = warp * queries + lane;
  const std::int64_t slot = lane < queries ? storage.slots[stage][x] : -1;
  if (slot >= 0) {
    bulk_store(static_cast<Element*>(p.work.partial_o) + slot * elements, &storage.q[stage][x * elements],
               elements * static_cast<int>(sizeof(Element)), CacheHintSm90::EVICT_FIRST);
  }
  cute::tma_store_arrive();
}

/// One tile of a consumer: softmax(q k^T) v into its stage and from there into the slots.
template <class Config, class Release>
__device__ __forceinline__ void attend_tile(const AttendParams& p, float scale_log2, int stage, int key_stage,
                                            int thread, const Release& release_previous,
                                            typename Config::Storage& storage) {
  using namespace cute;
  using Tile = typename Config::Tile;
  using Row = PartialRow<Tile>;
  const int lane = thread % 32, warp = thread / 32, head_mask = (1 << p.log2_group_size) - 1;
  const int row0 = warp * 16 + lane / 4, row1 = row0 + 8;
  auto* const q = storage.q[stage];
  const auto* const v = reinterpret_cast<const typename Tile::Value*>(storage.v[key_stage]);

  typename Tile::Scores s;
  Tile::template start_scores<typename Tile::LayoutQueries>(q, storage.k[key_stage], s, thread);
  release_previous();
  KeyScales<Tile, Tile::kScoreColumns / 2> k_scales;
  if constexpr (Config::kIsQuantized) {
    k_scales.start(storage.widen.k_scale[key_stage], lane);  // whatever lies there where it is not wanted
  }
  warpgroup_wait<0>();
  warpgroup_fence_operand(s);
  if constexpr (Config::kIsQuantized) {
    if (p.k_scale.is_per_token()) k_scales.apply(s);
  }

  Softmax softmax;
  float alpha[2];
  softmax.template update<Tile>(s, scale_log2, alpha);
  typename Tile::Values o;
  const auto probabilities = Tile::round_scores(s);
  Tile::start_values(probabilities, v, o, false, thread);
  const float sum0 = quad_sum(softmax.sum[0]), sum1 = quad_sum(softmax.sum[1]);
  const int slot0 = storage.slots[stage][row0 >> p.log2_group_size];
  const int slot1 = storage.slots[stage][row1 >> p.log2_group_size];
  warpgroup_wait<0>();
  warpgroup_fence_operand(o);

  float unit = 1;
  if constexpr (Config::kIsQuantized) {
    if (p.v_scale.is_per_token()) unit = storage.widen.v_unit[key_stage];
  }
  Row::store(o, 0, reciprocal_approx(sum0) * unit, q + row0 * Tile::kDim, row0 & head_mask, lane);
  Row::store(o, 1, reciprocal_approx(sum1) * unit, q + row1 * Tile::kDim, row1 & head_mask, lane);
  tma_store_fence();  // waits for stores to global memory too: the log-sum-exps come after it
  __syncwarp();
  store_partials<Config>(p, stage, warp, lane, storage);
  if (lane % 4 == 0) {
    const int shift = p.log2_group_size;
    if (slot0 >= 0) p.work.partial_lse[(slot0 << shift) + (row0 & head_mask)] = softmax.max[0] + log2_approx(sum0);
    if (slot1 >= 0) p.work.partial_lse[(slot1 << shift) + (row1 & head_mask)] = softmax.max[1] + log2_approx(sum1);
  }
}

/// Tiles go round the consumers; each has two stages of its own.
template <class Config>
__device__ __forceinline__ void consume_kv_outer(const AttendParams& p, typename Config::Storage& storage,
                                                 int num_items, int consumer, int thread) {
  const int capacity = kWarpgroupRows >> p.log2_group_size;
  float scale_log2 = p.scale_log2;
  if constexpr (Config::kIsQuantized) scale_log2 *= scale_for_all(p.k_scale);
  PipelineState<Config::kKeyStages> keys;
  PipelineState<Config::kTurns> turn;
  int staged = -1;  // stage whose partial results are on their way to memory
  const auto release_staged = [&] {
    if (staged < 0) return;
    cute::tma_store_wait<0>();
    __syncwarp();
    if (thread % 32 == 0) EmptyBarrier::arrive(&storage.q_empty[staged]);
  };
  int first = 0, next = consumer;  // of the CTA's tiles: the next item's first, and the consumer's next
  for (int number = blockIdx.x; number < num_items; number += gridDim.x) {
    FullBarrier::wait(&storage.kv_full[keys.stage], keys.phase);
    first += (storage.counts[keys.stage] + capacity - 1) / capacity;
    for (; next < first; next += Config::kConsumers, turn.advance()) {
      const int stage = turn.stage * Config::kConsumers + consumer;
      FullBarrier::wait(&storage.q_full[stage], turn.phase);
      attend_tile<Config>(p, scale_log2, stage, keys.stage, thread, release_staged, storage);
      staged = stage;
    }
    __syncwarp();
    if (thread % 32 == 0) EmptyBarrier::arrive(&storage.kv_empty[keys.stage]);
    keys.advance();
  }
  cute::tma_store_wait<0>();
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    kv_outer_kernel(const __grid_constant__ AttendBatches batches, const __grid_constant__ CUtensorMap map_q,
                    const __grid_constant__ CUtensorMap map_k, const __grid_constant__ CUtensorMap map_v) {
  extern __shared__ __align__(1024) char raw[];
  const AttendParams& p = batches.of[blockIdx.y];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  init_barriers([&] {
    init_ring(storage.kv_full, storage.kv_empty, 4 * Config::kConsumers, Config::kIsQuantized ? Config::kConsumers : 2);
    init_ring(storage.q_full, storage.q_empty, 4, 32);
    if constexpr (Config::kIsQuantized) {
      for (std::uint64_t& full : storage.widen.raw_full) FullBarrier::init(&full, has_scales_of_tokens(p) ? 3 : 2);
    }
  });
  wait_for_earlier_kernels();

  const int num_items = *p.work.num_items;
  // 65536 registers of the CTA: 56 x 128 for the producer, 152 x 384 for the consumers.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<56>();
    if constexpr (Config::kIsQuantized) {
      if (threadIdx.x < 32) produce_e4m3_keys<Config>(p, map_k, map_v, storage, num_items, threadIdx.x);
    } else {
      if (threadIdx.x == 0) produce_keys<Config>(p, map_k, map_v, storage, num_items);
    }
    if (threadIdx.x >= 32) produce_queries<Config>(p, map_q, storage, num_items, threadIdx.x / 32 - 1);
  } else {
    cutlass::arch::warpgroup_reg_alloc<152>();
    const int thread = thread_index();
    consume_kv_outer<Config>(p, storage, num_items, thread / 128 - 1, thread % 128);
  }
}

}  // namespace openmsa::cuda::sm90::prefill
