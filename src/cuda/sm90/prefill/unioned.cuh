// Attention of a tile's queries over the tile's union ("queries outside"), and the merge with what was gathered.
//
// Two consumer warpgroups of 64 rows (up to 16 queries of one KV head each) walk over the union's kv_blocks with an
// online softmax; a row takes part where its query is a member and not beyond its position. The next product q k^T runs
// beside the softmax, the product p v beside the next softmax. Then the partial results of the gathered pairs come
// through the same ring, slot by slot, and are added with weight exp2(lse - max).
//
//   barrier      arrivals                            waited on by  guards
//   q_full[i]    producer + bytes of q               consumers     the queries of a tile; the next tile's come early
//   q_empty[i]   one thread per consumer             producer      o, staged where q was, is written
//   full[i]      producer + bytes                    consumers     k, v or partial results of stage i
//   empty[i]     one thread per consumer             producer      both warpgroups are done with stage i
//   named 1, 2   128 threads of a warpgroup          the same      all of it is done with a partial / o is staged
//   named 3      256 threads                         the same      values that no query sees are zero
//
// Per kv_block (head_dim 128, kv_block 128): products 2048 cycles, 16384 exponentials 1024 cycles beside them. Merging
// reads 32 KB per slot and is bound by memory.
#pragma once

#include "cuda/sm90/prefill/params.h"
#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/barrier.cuh"
#include "cuda/sm90/tile/load_keys.cuh"

namespace openmsa::cuda::sm90 {

template <class Element, int kDim, int kBlock>
struct UnionConfig {
  using Tile = AttentionTile<Element, kDim, kBlock>;
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kStages = 5;
  static constexpr int kQueryStages = 2;
  static constexpr int kStageRows = kConsumers * kRows;  // a kv_block, or one slot of all rows

  struct Storage {
    alignas(1024) Element q[kQueryStages][kConsumers][kRows * kDim];
    alignas(1024) Element ring[kStages][kStageRows * kDim];
    std::uint64_t full[kStages], empty[kStages], q_full[kQueryStages], q_empty[kQueryStages];
  };
};

/// A tile of the chunk with the work that the schedule gave it.
struct UnionTile {
  QueryTile queries;
  const UnionEntry* entries;
  std::int32_t num_entries;
  const std::int32_t* slot_counts;  // per query
  std::int32_t first_slot;          // of the tile's first query, counted over the chunk

  __device__ __forceinline__ UnionTile(const PrefillParams& p, int number) {
    const Chunk& chunk = p.chunk;
    queries = find_tile(p.batch, p.index, chunk.first_tile + number, chunk.tile_queries);
    entries = chunk.unions + static_cast<std::int64_t>(number) * chunk.tile_queries * p.topk;
    num_entries = chunk.union_counts[number];
    slot_counts = chunk.slot_counts + number * chunk.tile_queries;
    first_slot = number * chunk.tile_queries * chunk.slots;
  }
  /// Slots of the query with most of them.
  __device__ __forceinline__ int most_slots() const {
    int most = 0;
    for (int x = 0; x < queries.count; ++x) most = max(most, slot_counts[x]);
    return most;
  }
};

__device__ __forceinline__ int tiles_in_chunk(const PrefillParams& p) {
  return max(0, min(p.chunk.max_tiles, p.index.tiles[p.batch.batch + 1] - p.chunk.first_tile));
}

/// One slot of every query that has it: boxes of group_size rows, with the producer's whole warp.
template <class Config>
__device__ __forceinline__ void load_slot(const PrefillParams& p, const CUtensorMap& map_partial, const UnionTile& tile,
                                          int slot, typename Config::Tile::Element* to, std::uint64_t* full) {
  using Tile = typename Config::Tile;
  const int x = threadIdx.x % 32, group = 1 << p.log2_group_size;
  const int per_consumer = p.chunk.tile_queries / Config::kConsumers;
  const bool has = x < tile.queries.count && tile.slot_counts[x] > slot;
  const int count = __popc(__ballot_sync(~0u, has));
  if (x == 0) {
    FullBarrier::arrive_and_expect_tx(full,
                                      count * group * Tile::kDim * static_cast<int>(sizeof(typename Tile::Element)));
  }
  __syncwarp();
  for (int h = 0; has && h < Tile::kHalves; ++h) {
    const int consumer = x / per_consumer, row = x % per_consumer * group;
    cute::SM90_TMA_LOAD_4D::copy(&map_partial, full, static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST),
                                 to + consumer * kRows * Tile::kDim + h * kRows * kHalf + row * kHalf, h * kHalf,
                                 (tile.first_slot + x * p.chunk.slots + slot) * group, 0, 0);
  }
}

template <class Config>
__device__ __forceinline__ void produce_union(const PrefillParams& p, const CUtensorMap& map_q,
                                              const CUtensorMap& map_k, const CUtensorMap& map_v,
                                              const CUtensorMap& map_partial, typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  using Element = typename Tile::Element;
  const int lane = threadIdx.x % 32, group = 1 << p.log2_group_size;
  const int per_consumer = p.chunk.tile_queries / Config::kConsumers;
  RingPosition<Config::kStages> ring;
  RingPosition<Config::kQueryStages> queries;
  for (int number = blockIdx.x; number < tiles_in_chunk(p); number += gridDim.x, queries.advance()) {
    const UnionTile tile(p, number);
    if (lane == 0) {
      EmptyBarrier::wait(&storage.q_empty[queries.stage], queries.parity ^ 1);
      FullBarrier::arrive_and_expect_tx(
          &storage.q_full[queries.stage],
          Config::kConsumers * per_consumer * group * Tile::kDim * static_cast<int>(sizeof(Element)));
      for (int c = 0; c < Config::kConsumers; ++c) {
        for (int h = 0; h < Tile::kHalves; ++h) {
          cute::SM90_TMA_LOAD_4D::copy(&map_q, &storage.q_full[queries.stage],
                                       static_cast<std::uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST),
                                       &storage.q[queries.stage][c][h * kRows * kHalf], h * kHalf, p.chunk.head * group,
                                       tile.queries.q_row + c * per_consumer, 0);
        }
      }
    }
    for (int u = 0; u < tile.num_entries; ++u) {
      const int first = tile.entries[u].block * Tile::kBlock;
      for (const CUtensorMap* map : {&map_k, &map_v}) {
        if (lane == 0) {
          EmptyBarrier::wait(&storage.empty[ring.stage], ring.parity ^ 1);
          load_keys<Element, Tile::kDim, Tile::kBlock>(*map, p.batch, tile.queries.sequence, tile.queries.view, first,
                                                       {p.key_box_rows, p.chunk.head}, storage.ring[ring.stage],
                                                       &storage.full[ring.stage]);
        }
        ring.advance();
      }
    }
    __syncwarp();
    const int slots = tile.most_slots();
    for (int slot = 0; slot < slots; ++slot) {
      EmptyBarrier::wait(&storage.empty[ring.stage], ring.parity ^ 1);
      load_slot<Config>(p, map_partial, tile, slot, storage.ring[ring.stage], &storage.full[ring.stage]);
      ring.advance();
    }
  }
}

/// A consumer's two rows of the tile.
struct ConsumerRow {
  std::int32_t query;     // of the tile
  std::int32_t head;      // of the group
  std::int32_t position;  // -1: no such row
  RowSoftmax softmax;
};

/// Hides the keys that a row does not see: all of them where its query is no member, else those past its position.
template <class Tile>
__device__ __forceinline__ void mask_row(typename Tile::Scores& s, int half, const ConsumerRow& row, UnionEntry entry,
                                         int lane) {
  using namespace cute;
  const bool is_member = row.position >= 0 && (entry.members >> row.query & 1);
  const int last = is_member ? row.position - entry.block * Tile::kBlock : -1;
  if (last >= Tile::kBlock - 1) return;
  CUTE_UNROLL
  for (int n = 0; n < Tile::kScoreColumns; ++n) {
    CUTE_UNROLL
    for (int c = 0; c < 2; ++c) {
      if (n * 8 + lane % 4 * 2 + c > last) s(make_coord(c, half, n), 0, 0) = -INFINITY;
    }
  }
}

/// Values that no query of the tile sees, behind the end of the sequence or later than the tile, may be NaN, and 0 *
/// NaN is NaN: both warpgroups overwrite them with 0.
template <class Tile>
__device__ __forceinline__ void clear_tail(typename Tile::Element* v, int valid, int thread, int threads) {
  constexpr int kChunks = Tile::kDim / 8;
  for (int i = valid * kChunks + thread; i < Tile::kBlock * kChunks; i += threads) {
    const int at = Tile::swizzled(Tile::kBlock, i / kChunks, i % kChunks * 8);
    *reinterpret_cast<uint4*>(v + at) = uint4{0, 0, 0, 0};
  }
  cutlass::arch::fence_view_async_shared();
  cutlass::arch::NamedBarrier::sync(threads, 3);
}

/// Online softmax over the union. Product k + 1 of q k^T is under way while p v of k is, and beside both the softmax:
///
///   scores 0 | softmax 0 | scores 1, values 0 | softmax 1 beside values 0 | scores 2, values 1 | ...
template <class Config>
__device__ __forceinline__ void attend_union(const PrefillParams& p, const UnionTile& tile, int consumer,
                                             const typename Config::Tile::Element* q, typename Config::Storage& storage,
                                             RingPosition<Config::kStages>& ring, ConsumerRow (&rows)[2],
                                             typename Config::Tile::Values& o) {
  using namespace cute;
  using Tile = typename Config::Tile;
  if (tile.num_entries == 0) return;
  const int thread = threadIdx.x % 128, lane = thread % 32;
  const auto release = [&](int stage) {
    if (thread == 0) EmptyBarrier::arrive(&storage.empty[stage]);
  };
  const auto start_values = [&](const auto& probabilities, UnionEntry entry, RingPosition<Config::kStages> at) {
    FullBarrier::wait(&storage.full[at.stage], at.parity);
    const int last = tile.queries.position + tile.queries.count - 1;
    const int valid = last + 1 - entry.block * Tile::kBlock;
    if (valid < Tile::kBlock) {
      clear_tail<Tile>(storage.ring[at.stage], valid, consumer * 128 + thread, 128 * Config::kConsumers);
    }
    Tile::start_values(probabilities, storage.ring[at.stage], o, true, thread);
  };

  typename Tile::Scores s;
  UnionEntry entry = tile.entries[0];
  FullBarrier::wait(&storage.full[ring.stage], ring.parity);
  Tile::start_scores(q, storage.ring[ring.stage], s, thread);
  warpgroup_wait<0>();
  warpgroup_fence_operand(s);
  release(ring.stage);
  for (int i = 0; i < 2; ++i) {
    mask_row<Tile>(s, i, rows[i], entry, lane);
    rows[i].softmax.template update<Tile>(s, i, p.scale_log2);
  }
  auto probabilities = Tile::round_scores(s);

  for (int u = 1; u < tile.num_entries; ++u) {
    const auto values = ring.after(1);
    ring.advance(2);
    FullBarrier::wait(&storage.full[ring.stage], ring.parity);
    Tile::start_scores(q, storage.ring[ring.stage], s, thread);
    start_values(probabilities, entry, values);
    entry = tile.entries[u];
    warpgroup_wait<1>();
    warpgroup_fence_operand(s);
    release(ring.stage);
    mask_row<Tile>(s, 0, rows[0], entry, lane);
    mask_row<Tile>(s, 1, rows[1], entry, lane);
    const float alpha0 = rows[0].softmax.template update<Tile>(s, 0, p.scale_log2);
    const float alpha1 = rows[1].softmax.template update<Tile>(s, 1, p.scale_log2);
    warpgroup_wait<0>();
    warpgroup_fence_operand(o);
    release(values.stage);
    scale_values<Tile>(o, alpha0, alpha1);
    probabilities = Tile::round_scores(s);
  }
  const auto values = ring.after(1);
  start_values(probabilities, entry, values);
  ring.advance(2);
  warpgroup_wait<0>();
  warpgroup_fence_operand(o);
  release(values.stage);
}

/// Adds the partial results of the gathered pairs: o = sum of exp2(lse - max) * partial o beside what the union gave.
template <class Config>
__device__ __forceinline__ void merge_slots(const PrefillParams& p, const UnionTile& tile, int consumer,
                                            typename Config::Storage& storage, RingPosition<Config::kStages>& ring,
                                            ConsumerRow (&rows)[2], typename Config::Tile::Values& o) {
  using namespace cute;
  using Tile = typename Config::Tile;
  using Element = typename Tile::Element;
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const int most = tile.most_slots();
  if (most == 0) return;
  int counts[2];
  const float* lse[2];
  float alpha[2];
  for (int i = 0; i < 2; ++i) {
    ConsumerRow& row = rows[i];
    const bool exists = row.query < tile.queries.count;
    counts[i] = exists ? tile.slot_counts[row.query] : 0;
    const std::int64_t slot = tile.first_slot + row.query * p.chunk.slots;
    lse[i] = p.chunk.partial_lse + (slot << p.log2_group_size) + row.head;
    float top = row.softmax.max;
    for (int j = 0; j < counts[i]; ++j) top = fmaxf(top, lse[i][j << p.log2_group_size]);
    alpha[i] = exp2_approx(row.softmax.max - finite_shift(top));
    row.softmax.max = top;
    row.softmax.sum *= alpha[i];
  }
  scale_values<Tile>(o, alpha[0], alpha[1]);

  for (int j = 0; j < most; ++j) {
    float weight[2];
    for (int i = 0; i < 2; ++i) {
      weight[i] = j < counts[i] ? exp2_approx(lse[i][j << p.log2_group_size] - finite_shift(rows[i].softmax.max)) : 0;
      if (lane % 4 == 0) rows[i].softmax.sum += weight[i];  // sums are added up over the quad later
    }
    FullBarrier::wait(&storage.full[ring.stage], ring.parity);
    const Element* partial = storage.ring[ring.stage] + consumer * kRows * Tile::kDim;
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (j >= counts[i]) continue;  // nothing was loaded there
      CUTE_UNROLL
      for (int n = 0; n < Tile::kValueColumns; ++n) {
        const int at = Tile::swizzled(kRows, warp * 16 + i * 8 + lane / 4, n * 8 + lane % 4 * 2);
        const auto pair = *reinterpret_cast<const cutlass::Array<Element, 2>*>(partial + at);
        o(make_coord(0, i, n), 0, 0) += weight[i] * static_cast<float>(pair[0]);
        o(make_coord(1, i, n), 0, 0) += weight[i] * static_cast<float>(pair[1]);
      }
    }
    cutlass::arch::NamedBarrier::sync(128, 1 + consumer);
    if (thread == 0) EmptyBarrier::arrive(&storage.empty[ring.stage]);
    ring.advance();
  }
}

/// Writes o through shared memory, 16 bytes per thread, and lse.
template <class Config>
__device__ __forceinline__ void write_results(const PrefillParams& p, const UnionTile& tile, int consumer,
                                              typename Config::Tile::Element* staged, const ConsumerRow (&rows)[2],
                                              const typename Config::Tile::Values& o) {
  using Tile = typename Config::Tile;
  using Element = typename Tile::Element;
  constexpr float kLn2 = 0.69314718055994530942f;
  constexpr int kChunks = Tile::kDim / 8;
  const int thread = threadIdx.x % 128, lane = thread % 32, group = 1 << p.log2_group_size;
  const int per_consumer = p.chunk.tile_queries / Config::kConsumers;
  float scale[2];
  for (int i = 0; i < 2; ++i) {
    const float sum = quad_sum(rows[i].softmax.sum);
    scale[i] = sum == 0 ? 0 : 1 / sum;
    const bool exists = rows[i].query < tile.queries.count && rows[i].head >= 0;
    if (p.lse != nullptr && exists && lane % 4 == 0) {
      const int head = p.chunk.head * group + rows[i].head;
      p.lse[(tile.queries.q_row + rows[i].query) * p.lse_strides[0] + head * p.lse_strides[1]] =
          sum == 0 ? -INFINITY : rows[i].softmax.max * kLn2 + logf(sum);
    }
  }
  Tile::store_values(o, scale[0], scale[1], staged, thread);
  cutlass::arch::NamedBarrier::sync(128, 1 + consumer);
  const int first = consumer * per_consumer;
  const int num_rows = max(0, min(per_consumer, tile.queries.count - first)) * group;
  auto* out = static_cast<Element*>(p.o);
  for (int i = thread; i < num_rows * kChunks; i += 128) {
    const int row = i / kChunks, channel = i % kChunks * 8;
    const std::int64_t q_row = tile.queries.q_row + first + row / group;
    const std::int64_t head = p.chunk.head * group + row % group;
    *reinterpret_cast<uint4*>(out + q_row * p.o_strides[0] + head * p.o_strides[1] + channel) =
        *reinterpret_cast<const uint4*>(staged + Tile::swizzled(kRows, row, channel));
  }
  // The copy engine loads the next queries over what was just read.
  cutlass::arch::fence_view_async_shared();
  cutlass::arch::NamedBarrier::sync(128, 1 + consumer);
}

template <class Config>
__device__ __forceinline__ void consume_union(const PrefillParams& p, typename Config::Storage& storage, int consumer) {
  using Tile = typename Config::Tile;
  const int thread = threadIdx.x % 128;
  const int per_consumer = p.chunk.tile_queries / Config::kConsumers;
  const int group_mask = (1 << p.log2_group_size) - 1;
  RingPosition<Config::kStages> ring;
  RingPosition<Config::kQueryStages> queries;
  for (int number = blockIdx.x; number < tiles_in_chunk(p); number += gridDim.x, queries.advance()) {
    const UnionTile tile(p, number);
    ConsumerRow rows[2];
    for (int i = 0; i < 2; ++i) {
      const int row = thread / 32 * 16 + i * 8 + thread % 32 / 4, query = row >> p.log2_group_size;
      const bool exists = query < per_consumer && consumer * per_consumer + query < tile.queries.count;
      rows[i].query = exists ? consumer * per_consumer + query : kMaxTileQueries;
      rows[i].head = row & group_mask;
      rows[i].position = exists ? tile.queries.position + rows[i].query : -1;
    }
    typename Tile::Values o;
    cute::clear(o);
    auto* const q = storage.q[queries.stage][consumer];
    FullBarrier::wait(&storage.q_full[queries.stage], queries.parity);
    attend_union<Config>(p, tile, consumer, q, storage, ring, rows, o);
    merge_slots<Config>(p, tile, consumer, storage, ring, rows, o);
    write_results<Config>(p, tile, consumer, q, rows, o);
    if (thread == 0) EmptyBarrier::arrive(&storage.q_empty[queries.stage]);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    union_kernel(const PrefillParams p, const __grid_constant__ CUtensorMap map_q,
                 const __grid_constant__ CUtensorMap map_k, const __grid_constant__ CUtensorMap map_v,
                 const __grid_constant__ CUtensorMap map_partial) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  if (threadIdx.x == 0) {
    init_ring(storage.full, storage.empty, Config::kConsumers);
    init_ring(storage.q_full, storage.q_empty, Config::kConsumers);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  cudaGridDependencySynchronize();

  // 64512 registers of the block: 40 x 128 for the producer, 232 x 256 for the consumers.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    if (threadIdx.x < 32) produce_union<Config>(p, map_q, map_k, map_v, map_partial, storage);
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    consume_union<Config>(p, storage, threadIdx.x / 128 - 1);
  }
}

}  // namespace openmsa::cuda::sm90
