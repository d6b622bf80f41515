// Attention with queries in the outer loop: a tile's queries over the tile's shared blocks, and the merge with the
// partial results of kv_outer.
//
// Two consumer warpgroups of 64 rows (up to 16 queries of one KV head each) go over the shared blocks with an online
// softmax; a row takes part where its query is a member and not beyond its position. The next product q k^T runs beside
// the softmax, the product p v beside the next softmax. Then the partial results of kv_outer come through the same ring,
// slot by slot, and are added with weight exp2(lse - max).
//
//   barrier      arrivals                            waited on by  guards
//   q_full[i]    32 lanes + bytes of q               consumers     a tile and its queries; the next tile's come early
//   q_empty[i]   one thread per consumer             producer      o, staged where q was, is written
//                (e4m3: and one of each warp beside the producer)
//   full[i]      producer + bytes                    consumers     k, v or partial results of stage i
//                (e4m3: wideners; partial results: producer, as often, + bytes)
//   raw_full[i]  producer + bytes of k or v          wideners      e4m3 and scales in stage i
//                (+ warp 1 where tokens have scales; partial results: producer, as often)
//   empty[i]     one thread per consumer             producer      both warpgroups are done with stage i
//   kWarpgroup   128 threads of a warpgroup          the same      all of it is done with a partial / o is staged
//   kTailCleared 256 threads                         the same      values that no query sees are zero
//   kTurn        128 threads of the other warpgroup  one of them   its turn on the tensor cores
//
// Keys and values in e4m3 become 16 bits wide where they lie (tile/widen.cuh), by six warps, the wideners: two of the
// producer's warpgroup and all of another one. Warp 1 loads the scales of tokens.
//
// Per kv_block (head_dim 128, kv_block 128): products 2048 cycles, 16384 exponentials 1024 cycles beside them. Merging
// reads 32 KB per slot and is bound by memory.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/sm90/prefill/q_outer_config.cuh"
#include "cuda/sm90/prefill/q_outer_e4m3.cuh"
#include "cuda/sm90/ptx/async_copy.cuh"
#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/causal_mask.cuh"
#include "cuda/sm90/tile/load_keys.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
#include "cuda/sm90/tile/partial_row.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/softmax.cuh"

namespace openmsa::cuda::sm90::prefill {

/// Slot `slot` of every query that has it: one copy where all do, else one per query, with the producer's whole warp.
/// `own_slots`: slots of query `lane`.
template <class Config>
__device__ __forceinline__ void load_slot(const AttendParams& p, std::int64_t first_slot, int slot, int own_slots,
                                          typename Config::Tile::Element* to, std::uint64_t* full) {
  using Element = typename Config::Tile::Element;
  const int x = threadIdx.x % 32, elements = Config::Tile::kDim << p.log2_group_size;
  const int bytes = elements * static_cast<int>(sizeof(Element));
  const bool has = own_slots > slot;
  const int count = __popc(__ballot_sync(kFullWarp, has));
  if (x == 0) FullBarrier::arrive_and_expect_tx(full, count * bytes);
  if (x > 0 && x < Config::kFullArrivals) EmptyBarrier::arrive(full);
  __syncwarp();
  const auto* const from = static_cast<const Element*>(p.work.partial_o) +
                           (first_slot + static_cast<std::int64_t>(slot) * p.work.tile_queries) * elements;
  if (count == p.work.tile_queries) {
    if (x == 0) bulk_load(to, from, count * bytes, full, CacheHintSm90::EVICT_FIRST);
  } else if (has) {
    bulk_load(to + x * elements, from + x * elements, bytes, full, CacheHintSm90::EVICT_FIRST);
  }
}

/// The tile's queries and what is known of it into one of the two stages, with the producer's whole warp.
template <class Config>
__device__ __forceinline__ void load_tile(const AttendParams& p, const CUtensorMap& map_q, const QueryTile& queries,
                                          int number, int num_shared, int own_slots, int most_slots,
                                          PipelineState<Config::kQueryStages> at, typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  const int lane = threadIdx.x % 32, group = 1 << p.log2_group_size;
  const int per_consumer = p.work.tile_queries / Config::kConsumers;
  std::uint64_t* const full = &storage.q_full[at.stage];
  EmptyBarrier::wait(&storage.q_empty[at.stage], at.phase ^ 1);
  QOuterTile& tile = storage.tiles[at.stage];
  tile.slot_counts[lane] = own_slots;
  if (lane != 0) return EmptyBarrier::arrive(full);
  tile.queries = queries;
  tile.number = number;
  tile.num_shared = num_shared;
  tile.most_slots = most_slots;
  FullBarrier::arrive_and_expect_tx(
      full, Config::kConsumers * per_consumer * group * Tile::kDim * static_cast<int>(sizeof(typename Tile::Element)));
  for (int c = 0; c < Config::kConsumers; ++c) {
    for (int h = 0; h < Tile::kHalves; ++h) {
      cute::SM90_TMA_LOAD_4D::copy(&map_q, full, static_cast<std::uint64_t>(CacheHintSm90::EVICT_FIRST),
                                   &storage.q[at.stage][c][h * kWarpgroupRows * kPanelChannels], h * kPanelChannels,
                                   p.work.head * group, queries.q_row + c * per_consumer, 0);
    }
  }
}

template <class Config>
__device__ __forceinline__ void produce_q_outer(const AttendParams& p, const CUtensorMap& map_q,
                                                const CUtensorMap& map_k, const CUtensorMap& map_v,
                                                typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  const int lane = threadIdx.x % 32, tiles = tiles_of_work(p);
  PipelineState<Config::kStages> ring;
  PipelineState<Config::kQueryStages> queries;
  for (int number = blockIdx.x; number < tiles; number += gridDim.x, queries.advance()) {
    const QueryTile tile = find_tile(p.batch, p.index, p.work.first_tile + number, p.work.tile_queries);
    const int num_shared = p.work.shared_counts[number];
    const int own_slots = lane < tile.count ? p.work.slot_counts[number * p.work.tile_queries + lane] : 0;
    const int most_slots = __reduce_max_sync(kFullWarp, own_slots);
    load_tile<Config>(p, map_q, tile, number, num_shared, own_slots, most_slots, queries, storage);
    __syncwarp();
    const SharedBlock* const entries = shared_of_tile(p, number);
    if constexpr (Config::kIsQuantized) {
      load_e4m3_blocks<Config>(p, map_k, map_v, tile, entries, num_shared, ring, storage);
    } else {
      for (int u = 0; u < num_shared; ++u) {
        for (const CUtensorMap* map : {&map_k, &map_v}) {
          if (lane == 0) {
            EmptyBarrier::wait(&storage.empty[ring.stage], ring.phase ^ 1);
            load_keys<typename Tile::Element, Tile::kDim, Tile::kBlock>(
                *map, p.batch, tile.sequence, tile.view, entries[u].block * Tile::kBlock, {p.key_box_rows, p.work.head},
                storage.ring[ring.stage], &storage.full[ring.stage]);
          }
          ring.advance();
        }
      }
    }
    __syncwarp();
    const std::int64_t first_slot = first_slot_of_tile(p, number);
    for (int slot = 0; slot < most_slots; ++slot) {
      EmptyBarrier::wait(&storage.empty[ring.stage], ring.phase ^ 1);
      if constexpr (Config::kIsQuantized) {
        // Keeps its phase that of the ring.
        if (lane < raw_arrivals(p)) EmptyBarrier::arrive(&storage.widen.raw_full[ring.stage]);
      }
      load_slot<Config>(p, first_slot, slot, own_slots, storage.ring[ring.stage], &storage.full[ring.stage]);
      ring.advance();
    }
  }
}

/// A consumer's two rows of the tile.
struct ConsumerRow {
  std::int32_t query;     // of the tile
  std::int32_t head;      // of the group
  std::int32_t position;  // -1: no such row
};

/// The last key of the kv_block that a row sees; negative: none, as where its query is no member.
template <class Tile>
__device__ __forceinline__ int last_visible(const ConsumerRow& row, SharedBlock entry) {
  const bool is_member = row.position >= 0 && (entry.members >> row.query & 1);
  return is_member ? row.position - entry.block * Tile::kBlock : -1;
}

/// Hides the keys that a row does not see.
template <class Tile>
__device__ __forceinline__ void mask_block(typename Tile::Scores& s, const ConsumerRow (&rows)[2], SharedBlock entry,
                                           int lane) {
  const int last[2] = {last_visible<Tile>(rows[0], entry), last_visible<Tile>(rows[1], entry)};
  hide_later_keys<Tile>(s, last, lane);
}

/// Online softmax over the shared blocks. Product k + 1 of q k^T is under way while p v of k is, and beside both the
/// softmax:
///
///   scores 0 | softmax 0 | scores 1, values 0 | softmax 1 beside values 0 | scores 2, values 1 | ...
///
/// The two warpgroups take turns in starting products. Without turns they fall in step, and the tensor cores idle while
/// both compute their softmax.
template <class Config>
__device__ __forceinline__ void attend_shared(const AttendParams& p, float scale_log2, const QOuterTile& tile,
                                              int consumer, const typename Config::Tile::Element* q,
                                              typename Config::Storage& storage, PipelineState<Config::kStages>& ring,
                                              PipelineState<Config::kScaleStages>& blocks, const ConsumerRow (&rows)[2],
                                              Softmax& softmax, typename Config::Tile::Values& o, int thread) {
  using namespace cute;
  using Tile = typename Config::Tile;
  if (tile.num_shared == 0) return;
  const int lane = thread % 32;
  const SharedBlock* const entries = shared_of_tile(p, tile.number);
  const auto release = [&](int stage) {
    if (thread == 0) EmptyBarrier::arrive(&storage.empty[stage]);
  };
  const auto start_values = [&](const auto& probabilities, SharedBlock entry, PipelineState<Config::kStages> at) {
    FullBarrier::wait(&storage.full[at.stage], at.phase);
    const int last = tile.queries.position + tile.queries.count - 1;
    const int valid = last + 1 - entry.block * Tile::kBlock;
    if (valid < Tile::kBlock) {  // the last entry at most: nobody holds its turn while both meet in there
      clear_tail<Tile>(storage.ring[at.stage], valid, consumer * 128 + thread, 128 * Config::kConsumers,
                       QOuterBarrier::kTailCleared);
    }
    const auto* const v = reinterpret_cast<const typename Tile::Value*>(storage.ring[at.stage]);
    Tile::start_values(probabilities, v, o, true, thread);
  };
  // Of the block that `blocks` is at; whatever lies there where keys have none.
  KeyScales<Tile, 2> k_scales;
  const auto start_scales = [&] {
    if constexpr (Config::kIsQuantized) k_scales.start(storage.widen.scales[blocks.stage].k, lane);
  };
  const auto scale_block = [&](typename Tile::Scores& s) {
    if constexpr (Config::kIsQuantized) {
      if (p.k_scale.is_per_token()) k_scales.apply(s);
    }
  };
  // o is in units of the largest value so far; sums of probabilities are not.
  float unit = 1;
  const auto change_unit = [&](float(&alpha)[2]) {
    if constexpr (Config::kIsQuantized) {
      if (!p.v_scale.is_per_token()) return;
      const float next = storage.widen.scales[blocks.stage].v_unit;
      const float ratio = unit * ValueUnit::inverse_of_power(next);
      alpha[0] *= ratio;
      alpha[1] *= ratio;
      unit = next;
    }
  };

  // s lives from its product to its rounding, no longer: beside o and the probabilities there is no room for a second.
  SharedBlock entry = entries[0];
  float alpha[2];
  const auto first_probabilities = [&] {
    typename Tile::Scores s;
    FullBarrier::wait(&storage.full[ring.stage], ring.phase);
    Tile::start_scores(q, storage.ring[ring.stage], s, thread);
    start_scales();
    warpgroup_wait<0>();
    warpgroup_fence_operand(s);
    release(ring.stage);
    scale_block(s);
    mask_block<Tile>(s, rows, entry, lane);
    softmax.template update<Tile>(s, scale_log2, alpha);
    change_unit(alpha);
    return Tile::round_scores(s);
  };
  auto probabilities = first_probabilities();
  for (int u = 1; u < tile.num_shared; ++u) {
    const auto values = ring.after(1);
    ring.advance(2);
    blocks.advance();
    typename Tile::Scores s;
    FullBarrier::wait(&storage.full[ring.stage], ring.phase);
    sync(of_consumer(QOuterBarrier::kTurn, consumer), 128 * Config::kConsumers);
    Tile::start_scores(opaque(q), storage.ring[ring.stage], s, thread);
    start_values(probabilities, entry, values);
    arrive(of_consumer(QOuterBarrier::kTurn, 1 - consumer), 128 * Config::kConsumers);
    entry = entries[u];
    start_scales();
    warpgroup_wait<1>();
    warpgroup_fence_operand(s);
    release(ring.stage);
    scale_block(s);
    mask_block<Tile>(s, rows, entry, lane);
    softmax.template update<Tile>(s, scale_log2, alpha);
    change_unit(alpha);
    softmax.finish();
    warpgroup_wait<0>();
    warpgroup_fence_operand(o);
    release(values.stage);
    scale_values<Tile>(o, alpha);
    warpgroup_fence_operand(s);  // not rounded earlier: the product before reads the probabilities before
    probabilities = Tile::round_scores(s);
  }
  const auto values = ring.after(1);
  start_values(probabilities, entry, values);
  ring.advance(2);
  blocks.advance();
  warpgroup_wait<0>();
  warpgroup_fence_operand(o);
  release(values.stage);
  if constexpr (Config::kIsQuantized) {
    if (p.v_scale.is_per_token()) scale_values<Tile>(o, {unit, unit});
  }
}

/// Log-sum-exps of a row's partial results. The four lanes of a quad, which share their rows, look after one slot each
/// of a group of four.
struct PartialLse {
  int count;
  const float* first;
  int stride;

  __device__ __forceinline__ PartialLse(const AttendParams& p, const QOuterTile& tile, const ConsumerRow& row)
      : count(row.query < kMaxTileQueries ? tile.slot_counts[row.query] : 0),
        first(p.work.partial_lse + ((first_slot_of_tile(p, tile.number) + row.query) << p.log2_group_size) + row.head),
        stride(p.work.tile_queries << p.log2_group_size) {}
  __device__ __forceinline__ float of_group(int group, int lane) const {
    const int slot = 4 * group + lane % 4;
    return slot < count ? first[slot * stride] : -INFINITY;
  }
};

/// Adds the partial results of kv_outer to what the shared blocks gave, as the online softmax does: a partial o has
/// weight exp2(lse - max). group_lse: of the first group of slots.
template <class Config>
__device__ __forceinline__ void merge_slots(const AttendParams& p, const QOuterTile& tile, int consumer,
                                            typename Config::Storage& storage, PipelineState<Config::kStages>& ring,
                                            const ConsumerRow (&rows)[2], float (&group_lse)[2], Softmax& softmax,
                                            typename Config::Tile::Values& o, int thread) {
  using namespace cute;
  using Tile = typename Config::Tile;
  const int lane = thread % 32, warp = thread / 32;
  const int first_row = (consumer * (p.work.tile_queries / Config::kConsumers) << p.log2_group_size) + warp * 16;
  const PartialLse lse[2] = {{p, tile, rows[0]}, {p, tile, rows[1]}};
#pragma unroll 1
  for (int first = 0; first < tile.most_slots; first += 4) {
    const float next_lse[2] = {lse[0].of_group(first / 4 + 1, lane), lse[1].of_group(first / 4 + 1, lane)};
    float alpha[2], weight[2];
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) {
      float shift;
      alpha[i] = raise_max(softmax.max[i], quad_max(group_lse[i]), shift);
      weight[i] = exp2_approx(group_lse[i] - shift);
      softmax.sum[i] = softmax.sum[i] * alpha[i] + weight[i];  // added up over the quad later
    }
    scale_values<Tile>(o, alpha);
#pragma unroll 1
    for (int slot = first; slot < min(first + 4, tile.most_slots); ++slot) {
      FullBarrier::wait(&storage.full[ring.stage], ring.phase);
      CUTE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float of_slot = __shfl_sync(kFullWarp, weight[i], slot % 4, 4);
        if (slot >= lse[i].count) continue;  // nothing was loaded there
        const int row = first_row + i * 8 + lane / 4;
        PartialRow<Tile>::add(o, i, of_slot, storage.ring[ring.stage] + row * Tile::kDim, rows[i].head, lane);
      }
      sync(of_consumer(QOuterBarrier::kWarpgroup, consumer), 128);
      if (thread == 0) EmptyBarrier::arrive(&storage.empty[ring.stage]);
      ring.advance();
    }
    group_lse[0] = next_lse[0];
    group_lse[1] = next_lse[1];
  }
}

/// A thread's rows of o in fp32, straight from the accumulator: what a quad stores is 32 bytes side by side.
template <class Config>
__device__ __forceinline__ void store_wide(const AttendParams& p, const QOuterTile& tile, const ConsumerRow (&rows)[2],
                                           const float (&scale)[2], const typename Config::Tile::Values& o, int lane) {
  using namespace cute;
  CUTE_UNROLL
  for (int i = 0; i < 2; ++i) {
    if (rows[i].query >= tile.queries.count) continue;
    const std::int64_t q_row = tile.queries.q_row + rows[i].query;
    const std::int64_t head = (p.work.head << p.log2_group_size) + rows[i].head;
    float* const to = static_cast<float*>(p.out.o) + q_row * p.out.o_strides[0] + head * p.out.o_strides[1];
    CUTE_UNROLL
    for (int n = 0; n < Config::Tile::kValueColumns; ++n) {
      const float2 two = {o(make_coord(0, i, n), 0, 0) * scale[i], o(make_coord(1, i, n), 0, 0) * scale[i]};
      *reinterpret_cast<float2*>(to + n * 8 + lane % 4 * 2) = two;
    }
  }
}

/// Writes o through shared memory, 16 bytes per thread, or in fp32, and lse.
template <class Config>
__device__ __forceinline__ void write_results(const AttendParams& p, const QOuterTile& tile, int consumer,
                                              typename Config::Tile::Element* staged, const ConsumerRow (&rows)[2],
                                              const Softmax& softmax, const typename Config::Tile::Values& o,
                                              float value_scale, int thread) {
  using Tile = typename Config::Tile;
  using Element = typename Tile::Element;
  constexpr int kChunks = Tile::kDim / 8;
  const int lane = thread % 32, group = 1 << p.log2_group_size;
  const int per_consumer = p.work.tile_queries / Config::kConsumers;
  float scale[2];
  for (int i = 0; i < 2; ++i) {
    const float sum = quad_sum(softmax.sum[i]);
    scale[i] = sum == 0 ? 0 : reciprocal_approx(sum) * value_scale;
    const bool exists = rows[i].query < tile.queries.count && rows[i].head >= 0;
    if (p.out.lse != nullptr && exists && lane % 4 == 0) {
      const int head = p.work.head * group + rows[i].head;
      p.out.lse[(tile.queries.q_row + rows[i].query) * p.out.lse_strides[0] + head * p.out.lse_strides[1]] =
          sum == 0 ? -INFINITY : softmax.max[i] * kLn2 + logf(sum);
    }
  }
  if (p.out.is_fp32) {
    store_wide<Config>(p, tile, rows, scale, o, lane);
    sync(of_consumer(QOuterBarrier::kWarpgroup, consumer), 128);
    return;
  }
  Tile::store_values(o, scale[0], scale[1], staged, thread);
  sync(of_consumer(QOuterBarrier::kWarpgroup, consumer), 128);
  const int first = consumer * per_consumer;
  const int num_rows = max(0, min(per_consumer, tile.queries.count - first)) * group;
  auto* out = static_cast<Element*>(p.out.o);
  for (int i = thread; i < num_rows * kChunks; i += 128) {
    const int row = i / kChunks, channel = i % kChunks * 8;
    const std::int64_t q_row = tile.queries.q_row + first + row / group;
    const std::int64_t head = p.work.head * group + row % group;
    *reinterpret_cast<uint4*>(out + q_row * p.out.o_strides[0] + head * p.out.o_strides[1] + channel) =
        *reinterpret_cast<const uint4*>(staged + Tile::swizzled(kWarpgroupRows, row, channel));
  }
  // The copy engine loads the next queries over what was just read.
  cutlass::arch::fence_view_async_shared();
  sync(of_consumer(QOuterBarrier::kWarpgroup, consumer), 128);
}

template <class Config>
__device__ __forceinline__ void consume_q_outer(const AttendParams& p, typename Config::Storage& storage, int consumer,
                                                int thread) {
  using Tile = typename Config::Tile;
  const int per_consumer = p.work.tile_queries / Config::kConsumers;
  const int group_mask = (1 << p.log2_group_size) - 1;
  PipelineState<Config::kStages> ring;
  PipelineState<Config::kQueryStages> queries;
  PipelineState<Config::kScaleStages> blocks;
  float scale_log2 = p.scale_log2, value_scale = 1;
  if constexpr (Config::kIsQuantized) {
    scale_log2 *= scale_for_all(p.k_scale);
    value_scale = scale_for_all(p.v_scale);
  }
  if (consumer == 1) arrive(QOuterBarrier::kTurn, 128 * Config::kConsumers);
  const int tiles = tiles_of_work(p);
  for (int number = blockIdx.x; number < tiles; number += gridDim.x, queries.advance()) {
    FullBarrier::wait(&storage.q_full[queries.stage], queries.phase);
    const QOuterTile& tile = storage.tiles[queries.stage];
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
    Softmax softmax;
    float group_lse[2];  // on their way during attend_shared
    for (int i = 0; i < 2; ++i) group_lse[i] = PartialLse(p, tile, rows[i]).of_group(0, thread % 32);
    attend_shared<Config>(p, scale_log2, tile, consumer, q, storage, ring, blocks, rows, softmax, o, thread);
    merge_slots<Config>(p, tile, consumer, storage, ring, rows, group_lse, softmax, o, thread);
    write_results<Config>(p, tile, consumer, q, rows, softmax, o, value_scale, thread);
    if (thread == 0) EmptyBarrier::arrive(&storage.q_empty[queries.stage]);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    q_outer_kernel(const __grid_constant__ AttendBatches batches, const __grid_constant__ CUtensorMap map_q,
                   const __grid_constant__ CUtensorMap map_k, const __grid_constant__ CUtensorMap map_v) {
  extern __shared__ __align__(1024) char raw[];
  const AttendParams& p = batches.of[blockIdx.y];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  init_barriers([&] {
    init_ring(storage.full, storage.empty, Config::kConsumers, Config::kFullArrivals);
    if constexpr (Config::kIsQuantized) {
      const int readers = Config::kConsumers + Config::kWideners + (has_scales_of_tokens(p) ? 1 : 0);
      init_ring(storage.q_full, storage.q_empty, readers, 32);
      for (std::uint64_t& full : storage.widen.raw_full) FullBarrier::init(&full, raw_arrivals(p));
    } else {
      init_ring(storage.q_full, storage.q_empty, Config::kConsumers, 32);
    }
  });
  wait_for_earlier_kernels();

  // 64512 registers of the CTA: 40 x 128 for the producer, 232 x 256 for the consumers. e4m3: 65536, 48 x 128 for the
  // producer, the scales and two wideners, 216 x 256 for the consumers, 32 x 128 for the other wideners.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<Config::kIsQuantized ? 48 : 40>();
    if (threadIdx.x < 32) produce_q_outer<Config>(p, map_q, map_k, map_v, storage);
    if constexpr (Config::kIsQuantized) {
      if (threadIdx.x / 32 == 1 && has_scales_of_tokens(p)) load_scales_of_shared<Config>(p, storage);
      if (threadIdx.x >= 64) widen_q_outer<Config>(p, storage, threadIdx.x / 32 - 2, threadIdx.x % 32);
    }
  } else if (Config::kIsQuantized && threadIdx.x >= 384) {
    if constexpr (Config::kIsQuantized) {
      cutlass::arch::warpgroup_reg_dealloc<32>();
      widen_q_outer<Config>(p, storage, threadIdx.x / 32 - 10, threadIdx.x % 32);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<Config::kIsQuantized ? 216 : 232>();
    const int thread = thread_index();
    consume_q_outer<Config>(p, storage, thread / 128 - 1, thread % 128);
  }
}

}  // namespace openmsa::cuda::sm90::prefill
