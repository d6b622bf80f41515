// Gradient of attention with kv_blocks in the outer loop: each work item is a kv_block and the query rows of one KV head
// that visit it, in ascending order. Its keys and values stay; tiles of 64 rows, the query heads of 64 / group_size
// queries, stream past. Two consumer warpgroups take 64 keys each; a thread's accumulators are keys x rows:
//
//   s^T [64 keys][64 rows]    = k q^T             both from shared memory
//   dp^T[64 keys][64 rows]    = v d_o^T           both from shared memory
//   d_v [64 keys][kDim]      += p^T d_o           p^T from registers
//   d_k [64 keys][kDim]      += ds^T q            ds^T from registers
//   d_q [64 rows][kDim / 2]   = ds k              ds of both warpgroups through shared memory, half of the channels each
//   P   [64 keys][8 queries]  = p^T weights       for the KL loss: means over the heads of a query, p^T from registers
//
// d_k and d_v stay in registers for the whole item. d_q leaves with every tile, as fixed-point numbers that the copy
// engine adds to those in memory (params.h).
//
//   barrier        arrivals                         waited on by          guards
//   item_full[i]   warp 0                           warps 1 and 2, cons.  the item
//   item_empty[i]  warps 1 and 2, consumer warps    warp 0                all have read it
//   kv_full        warp 0 + bytes                   consumers             keys and values of the item
//   kv_empty       consumer warps                   warp 0                all products with them are done
//   rows_full[i]   warp 1 + bytes, lanes of warp 2  consumers             q, d_o and statistics of stage i
//   rows_empty[i]  consumer warps                   warps 1 and 2         all products with them are done
//   kScores        256 threads of the consumers     the same              ds of both is in shared memory
//   kKeys, kRows   256 threads of the consumers     the same              numbers that are not finite have been removed;
//                                                                         d_k and d_v of the item before have been added
//   kItem          256 threads of the consumers     the same              it is the item's turn to add d_k and d_v; those of
//                                                                         the last item have been added
//
// Order of a consumer's products, and what runs beside them:
//
//   s, dp | p beside dp, d_k of the tile before | d_v | ds beside d_v | d_q, d_k | d_q to memory beside d_k, next s
//
// Per tile (head_dim 128): products 2560 cycles of the tensor cores, 8192 exponentials 512 cycles; shared memory 2688
// cycles at 128 bytes, with the operands of the products, ds and d_q. 16 KB of q and d_o come in, 32 KB of d_q go out to
// the L2 cache.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/sm90/ptx/async_copy.cuh"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/ptx/turn.cuh"
#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/training/backward_tile.cuh"
#include "cuda/sm90/training/group_sums.cuh"
#include "cuda/sm90/training/items.cuh"
#include "cuda/sm90/training/params.h"

namespace openmsa::cuda::sm90::training {

enum class BackwardBarrier { kScores = 1, kKeys = 2, kRows = 3, kItem = 4 };

/// Statistics of a tile's 64 rows, put beside its q and d_o by the producer.
struct alignas(16) TileRows {
  float lse2[kTileRows];
  float delta[kTileRows];
  float to_fixed[kTileRows];
  std::int32_t last_key[kTileRows];  // of the kv_block, that the row sees
  std::int32_t q_row[kTileRows];     // of each query; -1: none
  bool is_masked;                    // some row does not see all 128 keys
  bool is_poisoned;                  // some row is not finite
};

template <class Element, int kDim, TeacherMeans kMeans>
struct BackwardConfig {
  static constexpr bool kGivesTeacher = kMeans != TeacherMeans::kNone;
  static constexpr bool kHasProducts = kMeans == TeacherMeans::kByProducts;
  using Tile = BackwardTile<Element, kDim>;
  static constexpr int kConsumers = 2;
  static constexpr int kConsumerThreads = 128 * kConsumers;
  static constexpr int kThreads = kConsumerThreads + 128;
  static constexpr int kStages = 2;
  static constexpr int kItemStages = 2;
  static constexpr int kWarpRows = 16;  // of d_q, that a warp holds

  struct Storage {
    alignas(1024) Element k[kTileKeys * kDim];
    alignas(1024) Element v[kTileKeys * kDim];
    alignas(1024) Element q[kStages][kTileRows * kDim];
    alignas(1024) Element d_o[kStages][kTileRows * kDim];
    alignas(1024) Element ds[2][kTileKeys * kTileRows];
    alignas(1024) Element mean_weights[kHasProducts ? Tile::kMeans * kTileRows : 1];
    alignas(1024) std::int32_t d_q[kConsumers * 4][kWarpRows * kDim / 2];  // of each warp
    TileRows rows[kStages];
    generic::ListItem items[kItemStages];  // count 0: no more
    std::uint64_t item_full[kItemStages], item_empty[kItemStages], kv_full[1], kv_empty[1];
    std::uint64_t rows_full[kStages], rows_empty[kStages];
  };
};

// ---- Producers ------------------------------------------------------------------------------------------------------

/// Takes items, and loads their keys and values; one thread.
template <class Config>
__device__ __forceinline__ void produce_items(const BackwardParams& p, const CUtensorMap& map_k,
                                              const CUtensorMap& map_v, typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  PipelineState<1> keys;
  const auto as_it_is = [](const generic::ListItem& item, int) { return item; };
  take_items(p.batch, p.work, p.work.next_item, storage, as_it_is, [&](const generic::ListItem& item, int row) {
    EmptyBarrier::wait(storage.kv_empty, keys.phase ^ 1);
    FullBarrier::arrive_and_expect_tx(storage.kv_full, 2 * kTileKeys * Tile::kDim * sizeof(typename Tile::Element));
    copy_key_panels<Tile::kDim>(map_k, item.head, row, storage.k, storage.kv_full);
    copy_key_panels<Tile::kDim>(map_v, item.head, row, storage.v, storage.kv_full);
    keys.advance();
  });
}

/// q and d_o of all tiles; a warp. One copy per query (one per half where it has less than 8 rows); where a tile lacks
/// a query, of a row outside the tensor, which are zeros.
template <class Config>
__device__ __forceinline__ void produce_rows(const BackwardParams& p, const CUtensorMap& map_q,
                                             const CUtensorMap& map_d_o, typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  const int lane = threadIdx.x % 32, shift = p.log2_group_size, capacity = kTileRows >> shift;
  PipelineState<Config::kStages> ring;
  for_each_item(storage, [&](const generic::ListItem& item) {
    int q_rows[2];
    const auto load_q_rows = [&](int begin) {
      for (int i = 0; i < 2; ++i) q_rows[i] = p.work.visited_row(item, begin + lane + 32 * i);
    };
    load_q_rows(0);
    for (int begin = 0; begin < item.count; begin += capacity, ring.advance()) {
      std::uint64_t* const full = &storage.rows_full[ring.stage];
      EmptyBarrier::wait(&storage.rows_empty[ring.stage], ring.phase ^ 1);
      if (lane == 0) {
        FullBarrier::arrive_and_expect_tx(full, 2 * kTileRows * Tile::kDim * sizeof(typename Tile::Element));
      }
      __syncwarp();
      for (int i = 0; i < 2; ++i) {
        const int x = lane + 32 * i, token = q_rows[i] < 0 ? p.batch.total_q : q_rows[i];
        if (x >= capacity) continue;
        copy_query<Tile>(map_q, full, storage.q[ring.stage], x, shift, item.head, token);
        copy_query<Tile>(map_d_o, full, storage.d_o[ring.stage], x, shift, item.head, token);
      }
      load_q_rows(begin + capacity);
    }
  });
}

/// Statistics of all tiles' rows; a warp, with two rows per lane.
template <class Config>
__device__ __forceinline__ void produce_statistics(const BackwardParams& p, typename Config::Storage& storage) {
  const int lane = threadIdx.x % 32, shift = p.log2_group_size, capacity = kTileRows >> shift;
  PipelineState<Config::kStages> ring;
  for_each_item(storage, [&](const generic::ListItem& item) {
    const SequenceView view = p.batch.sequence(item.sequence);
    const int first_key = item.block * p.batch.block_size, position = view.seqlen_k - view.seqlen_q - view.q_row;
    for (int begin = 0; begin < item.count; begin += capacity, ring.advance()) {
      float lse2[2], delta[2], to_fixed[2];
      int q_row[2], last_key[2];
      bool hides = false, is_finite = true;
      for (int i = 0; i < 2; ++i) {
        const int row = lane + 32 * i;
        q_row[i] = p.work.visited_row(item, begin + (row >> shift));
        last_key[i] = min(position + q_row[i] - first_key, p.batch.block_size - 1);
        const bool is_there = q_row[i] >= 0;
        const std::int64_t place = (p.work.place(item.head, q_row[i]) << shift) + (row & ((1 << shift) - 1));
        lse2[i] = is_there ? p.stats.lse2[place] : INFINITY;
        delta[i] = is_there ? p.stats.delta[place] : 0;
        to_fixed[i] = is_there ? p.stats.to_fixed[place] : 0;
        hides |= is_there && last_key[i] < kTileKeys - 1;
        is_finite &= isfinite(to_fixed[i]);
      }
      EmptyBarrier::wait(&storage.rows_empty[ring.stage], ring.phase ^ 1);
      TileRows& rows = storage.rows[ring.stage];
      for (int i = 0; i < 2; ++i) {
        const int row = lane + 32 * i;
        rows.lse2[row] = lse2[i];
        rows.delta[row] = delta[i];
        rows.to_fixed[row] = to_fixed[i];
        rows.last_key[row] = last_key[i];
        if ((row & ((1 << shift) - 1)) == 0) rows.q_row[row >> shift] = q_row[i];
      }
      const bool is_masked = __any_sync(kFullWarp, hides), is_poisoned = __any_sync(kFullWarp, !is_finite);
      if (lane == 0) {
        rows.is_masked = is_masked;
        rows.is_poisoned = is_poisoned;
      }
      EmptyBarrier::arrive(&storage.rows_full[ring.stage]);
    }
  });
}

// ---- Consumers ------------------------------------------------------------------------------------------------------

/// Keys that are not finite, which rows that do not see them would meet as 0 * NaN in d_q, become 0. Rows that do see
/// them are NaN by their lse.
template <class Config>
__device__ __forceinline__ void remove_poison_from_keys(typename Config::Storage& storage, int thread) {
  clear_keys_not_finite<Config::Tile::kDim, Config::kConsumerThreads>(storage.k, thread);
  sync(BackwardBarrier::kKeys, Config::kConsumerThreads);
}

/// The same for q and d_o, which keys that the row does not see would meet in d_k and d_v. Keys that it does see become
/// NaN by its statistics.
template <class Config>
__device__ __forceinline__ void remove_poison_from_rows(typename Config::Storage& storage, int stage, int thread) {
  using Tile = typename Config::Tile;
  for (int i = thread; i < kTileRows * Tile::kDim / 8; i += Config::kConsumerThreads) {
    for (typename Tile::Element* rows : {storage.q[stage], storage.d_o[stage]}) {
      uint4& chunk = reinterpret_cast<uint4*>(rows)[i];
      if (!is_finite<typename Tile::Element>(chunk)) chunk = uint4{0, 0, 0, 0};
    }
  }
  cutlass::arch::fence_view_async_shared();
  sync(BackwardBarrier::kRows, Config::kConsumerThreads);
}

/// Two numbers for each eight rows: those of the thread's columns.
struct ColumnPairs {
  float2 of[kTileRows / 8];

  __device__ __forceinline__ ColumnPairs(const float (&rows)[kTileRows], int lane) {
    CUTE_UNROLL
    for (int n = 0; n < kTileRows / 8; ++n) of[n] = *reinterpret_cast<const float2*>(&rows[8 * n + 2 * (lane % 4)]);
  }
};

/// p^T = exp2(s^T * scale_log2 - lse2), in the place of s^T.
template <class Tile>
__device__ __forceinline__ void probabilities(typename Tile::Scores& s, const ColumnPairs& lse2, float scale_log2) {
  using namespace cute;
  CUTE_UNROLL
  for (int i = 0; i < size(s); ++i) {  // s(i): row i / 4 * 8 + lane % 4 * 2 + i % 2
    s(i) = exp2_approx(fmaf(s(i), scale_log2, -(i % 2 == 0 ? lse2.of[i / 4].x : lse2.of[i / 4].y)));
  }
}

/// ds^T = p^T (dp^T - delta), in the place of dp^T.
template <class Tile>
__device__ __forceinline__ void score_gradients(const typename Tile::Scores& p, typename Tile::Scores& dp,
                                                const ColumnPairs& delta) {
  using namespace cute;
  CUTE_UNROLL
  for (int i = 0; i < size(dp); ++i) dp(i) = p(i) * (dp(i) - (i % 2 == 0 ? delta.of[i / 4].x : delta.of[i / 4].y));
}

/// Hides the keys that a row does not see: x = 0 there. `key`: of the kv_block, the thread's first. Elsewhere x is NaN
/// where delta is, if it gives NaN.
template <class Tile, bool kGivesNan>
__device__ __forceinline__ void mask(typename Tile::Scores& x, const TileRows& rows, int key, int lane) {
  using namespace cute;
  CUTE_UNROLL
  for (int i = 0; i < size(x); ++i) {  // x(i): key + 8 * (i / 2 % 2), row i / 4 * 8 + lane % 4 * 2 + i % 2
    const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
    const bool sees = key + i / 2 % 2 * 8 <= rows.last_key[row];
    x(i) = !sees ? 0 : kGivesNan ? fmaf(0, rows.delta[row], x(i)) : x(i);
  }
}

/// NaN in d_v of the keys that a row without finite lse or d_o sees: its probabilities have been bounded.
template <class Tile>
__device__ __forceinline__ void poison_keys(typename Tile::KeyGradients& d_v, const TileRows& rows, int key, int lane) {
  using namespace cute;
  float nan[2] = {0, 0};  // of the thread's keys
#pragma unroll 1          // rare
  for (int row = lane % 4; row < kTileRows; row += 4) {
    for (int i = 0; i < 2; ++i) {
      if (key + 8 * i <= rows.last_key[row] && isnan(rows.to_fixed[row])) nan[i] = NAN;
    }
  }
  CUTE_UNROLL
  for (int i = 0; i < 2; ++i) {
    nan[i] += __shfl_xor_sync(kFullWarp, nan[i], 1);
    nan[i] += __shfl_xor_sync(kFullWarp, nan[i], 2);
  }
  CUTE_UNROLL
  for (int i = 0; i < size(d_v); ++i) d_v(i) += nan[i / 2 % 2];
}

/// Adds a warp's 16 rows of d_q to those in memory: fixed point into the warp's own staging memory, from there one copy
/// per query. Waits until the copies before have read it.
template <class Config>
__device__ __forceinline__ void add_d_q(const BackwardParams& p, const generic::ListItem& item,
                                        const typename Config::Tile::RowGradients& d_q, const TileRows& rows,
                                        std::int32_t* staged, int consumer, int warp, int lane) {
  using namespace cute;
  using Tile = typename Config::Tile;
  constexpr int kWidth = Tile::kDim / 2, kChunks = kWidth / 16;
  const int shift = p.log2_group_size, group = 1 << shift;
  cute::tma_store_wait<0>();
  __syncwarp();
  CUTE_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    const float to_fixed = rows.to_fixed[warp * Config::kWarpRows + row];
    const int swizzle = row & (group - 1) & (kChunks - 1);
    CUTE_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      int x[4];
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i)
        x[i] = __float2int_rn(d_q(make_coord(i % 2, half, 2 * chunk + i / 2), 0, 0) * to_fixed);
      *reinterpret_cast<int4*>(staged + row * kWidth + ((chunk ^ swizzle) * 4 + lane % 4) * 4) =
          int4{x[0], x[1], x[2], x[3]};
    }
  }
  cutlass::arch::fence_view_async_shared();
  __syncwarp();
  const int queries = Config::kWarpRows >> shift;
  const int q_row = lane < queries ? rows.q_row[warp * queries + lane] : -1;
  if (q_row >= 0) {
    const int elements = group * kWidth;
    std::int32_t* const to = p.d_q_sums + (p.work.place(item.head, q_row) * 2 + consumer) * elements;
    bulk_add(to, staged + lane * elements, elements * static_cast<int>(sizeof(std::int32_t)));
  }
  cute::tma_store_arrive();
}

/// Adds an item's d_k and d_v to those of earlier items of its kv_block; in its turn, which ends when they have arrived.
/// `key`: the thread's first.
template <class Tile>
__device__ __forceinline__ void add_key_gradients(const BackwardParams& p, const generic::ListItem& item,
                                                  const typename Tile::KeyGradients& d_k,
                                                  const typename Tile::KeyGradients& d_v, int key, int lane) {
  using namespace cute;
  const SequenceView view = p.batch.sequence(item.sequence);
  const int first = item.block * p.batch.block_size, keys = min(p.batch.block_size, view.seqlen_k - first);
  const std::int64_t row = std::int64_t{item.head - p.work.first_head} * p.batch.total_k + view.k_row + first;
  const auto add = [&](const typename Tile::KeyGradients& d, int half, float* to) {
    CUTE_UNROLL
    for (int n = 0; n < Tile::kDim / 8; ++n) {
      reduce_add(to + 8 * n, {d(make_coord(0, half, n), 0, 0), d(make_coord(1, half, n), 0, 0)});
    }
  };
  CUTE_UNROLL
  for (int half = 0; half < 2; ++half) {
    if (key + 8 * half >= keys) continue;
    float* const to = p.d_kv_sums + (row + key + 8 * half) * (2 * Tile::kDim) + 2 * (lane % 4);
    add(d_k, half, to);
    add(d_v, half, to + Tile::kDim);
  }
}

/// All tiles of an item.
template <class Config>
__device__ __forceinline__ void consume_item(const BackwardParams& p, const generic::ListItem& item,
                                             PipelineState<Config::kStages>& ring, int& turn,
                                             typename Config::Storage& storage, int consumer, int thread) {
  using namespace cute;
  using Tile = typename Config::Tile;
  const int lane = thread % 32, warp = thread / 32, key = consumer * Tile::kKeys + warp * 16 + lane / 4;
  const int capacity = kTileRows >> p.log2_group_size, tiles = (item.count + capacity - 1) / capacity;
  typename Tile::KeyGradients d_k, d_v;
  // The thread's keys of a tile's first query. All visits of a list batch, of 2^7 keys each, are less than 2^32 numbers.
  [[maybe_unused]] const auto teacher = [&](int tile) {
    return p.teacher.data + (static_cast<std::uint32_t>(item.begin + tile * capacity) * kTileKeys + key_pair(key));
  };
  int done = -1;  // stage of the tile before, whose d_k is under way
  const auto release_done = [&] {
    if (done >= 0 && lane == 0) EmptyBarrier::arrive(&storage.rows_empty[done]);
  };
  for (int tile = 0; tile < tiles; ++tile, ring.advance(), turn ^= 1) {
    const int stage = ring.stage;
    const TileRows& rows = storage.rows[stage];
    typename Tile::Element* const ds = storage.ds[turn];
    FullBarrier::wait(&storage.rows_full[stage], ring.phase);
    const bool is_masked = rows.is_masked;
    const bool is_poisoned = rows.is_poisoned;
    if (is_masked && is_poisoned) remove_poison_from_rows<Config>(storage, stage, consumer * 128 + thread);

    // Loads from shared memory take several times as long beside the products that read both operands there.
    const ColumnPairs lse2(rows.lse2, lane);
    typename Tile::Scores s, dp;
    Tile::start_scores(storage.k, storage.q[stage], s, consumer, thread);
    Tile::start_scores(storage.v, storage.d_o[stage], dp, consumer, thread);
    warpgroup_wait<1>();
    warpgroup_fence_operand(s);
    if (tile > 0) warpgroup_fence_operand(d_k);
    release_done();
    probabilities<Tile>(s, lse2, p.scale_log2);
    if (is_masked) mask<Tile, false>(s, rows, key, lane);
    auto p_operand = Tile::round(s);
    if (is_poisoned) bound_probabilities<typename Tile::Element>(p_operand);
    warpgroup_wait<0>();
    warpgroup_fence_operand(dp);

    Tile::start_key_gradients(p_operand, storage.d_o[stage], d_v, tile > 0, thread);
    [[maybe_unused]] typename Tile::Means means;
    if constexpr (Config::kHasProducts) {
      Tile::start_means(p_operand, storage.mean_weights, means, thread);
    } else if constexpr (Config::kGivesTeacher) {
      with_group_sums<kMostProductQueries>(p.log2_group_size, [&](auto sums) {
        decltype(sums)(s).store(teacher(tile), kTileKeys, item.count - tile * capacity, lane);
      });
    }
    score_gradients<Tile>(s, dp, ColumnPairs(rows.delta, lane));
    if (is_masked) mask<Tile, true>(dp, rows, key, lane);
    const auto ds_operand = Tile::round(dp);
    Tile::store_scores(ds_operand, ds, consumer, thread);
    cutlass::arch::fence_view_async_shared();
    sync(BackwardBarrier::kScores, Config::kConsumerThreads);

    typename Tile::RowGradients d_q;
    Tile::start_row_gradients(ds, storage.k, d_q, consumer, thread);
    Tile::start_key_gradients(ds_operand, storage.q[stage], d_k, tile > 0, thread);
    warpgroup_wait<1>();
    warpgroup_fence_operand(d_q);
    warpgroup_fence_operand(d_v);
    if constexpr (Config::kHasProducts) {
      warpgroup_fence_operand(means);
      const int queries = min(item.count - tile * capacity, capacity);
      store_means(means, teacher(tile), queries, lane);
    }
    if (is_poisoned) poison_keys<Tile>(d_v, rows, key, lane);
    add_d_q<Config>(p, item, d_q, rows, storage.d_q[consumer * 4 + warp], consumer, warp, lane);
    done = stage;
  }
  warpgroup_wait<0>();
  warpgroup_fence_operand(d_k);
  release_done();
  if (lane == 0) EmptyBarrier::arrive(storage.kv_empty);
  if (consumer == 0 && thread == 0) wait_for_turn(p.work.tickets + item.ticket, item.order);
  sync(BackwardBarrier::kItem, Config::kConsumerThreads);
  add_key_gradients<Tile>(p, item, d_k, d_v, key, lane);
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    backward_kernel(const BackwardParams p, const __grid_constant__ CUtensorMap map_q,
                    const __grid_constant__ CUtensorMap map_d_o, const __grid_constant__ CUtensorMap map_k,
                    const __grid_constant__ CUtensorMap map_v) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  constexpr int kConsumerWarps = Config::kConsumerThreads / 32;
  if constexpr (Config::kHasProducts) {
    fill_mean_weights<typename Config::Tile, Config::kThreads>(storage.mean_weights, p.log2_group_size);
  }
  init_barriers([&] {
    init_ring(storage.item_full, storage.item_empty, kConsumerWarps + 2);
    init_ring(storage.kv_full, storage.kv_empty, kConsumerWarps);
    init_ring(storage.rows_full, storage.rows_empty, kConsumerWarps, 1 + 32);
  });
  wait_for_earlier_kernels();

  // 64512 registers of the CTA: 24 x 128 for the producers, 240 x 256 for the consumers.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<24>();
    const int warp = threadIdx.x / 32;
    if (threadIdx.x == 0) produce_items<Config>(p, map_k, map_v, storage);
    if (warp == 1) produce_rows<Config>(p, map_q, map_d_o, storage);
    if (warp == 2) produce_statistics<Config>(p, storage);
  } else {
    cutlass::arch::warpgroup_reg_alloc<240>();
    const int thread = thread_index() % 128, consumer = thread_index() / 128 - 1;
    PipelineState<Config::kStages> ring;
    PipelineState<1> keys;
    int turn = 0;
    int* ticket = nullptr;  // of the item before
    const auto end_turn_before = [&] {
      if (consumer == 0 && thread == 0 && ticket != nullptr) end_turn(ticket);
    };
    for_each_item(storage, [&](const generic::ListItem& item) {
      FullBarrier::wait(storage.kv_full, keys.phase);
      keys.advance();
      __threadfence();  // d_k and d_v of the item before have been added
      remove_poison_from_keys<Config>(storage, consumer * 128 + thread);
      end_turn_before();
      consume_item<Config>(p, item, ring, turn, storage, consumer, thread);
      ticket = p.work.tickets + item.ticket;
    });
    __threadfence();
    sync(BackwardBarrier::kItem, Config::kConsumerThreads);
    end_turn_before();
    cute::tma_store_wait<0>();
  }
}

}  // namespace openmsa::cuda::sm90::training
