// Gradient of attention with kv_blocks in the outer loop: each work item is a kv_block and the query rows of one KV head
// that visit it, in ascending order. Its keys and values stay; tiles of 32 rows, the query heads of 32 / group_size
// queries, stream past (tile.cuh):
//
//   s^T [16 keys][32 rows] = k q^T           dp^T[16 keys][32 rows] = v d_o^T
//   d_v [16 keys][kDim]   += p^T d_o         d_k [16 keys][kDim]   += ds^T q
//   d_q [32 rows][kDim]    = ds k            through shared memory, 16 rows and a quarter of the channels for each warp
//
// d_k and d_v stay in registers for the whole item, and are added to those in memory in the item's turn. d_q leaves with
// every tile, as fixed-point numbers (generic/training/params.h).
//
//   wait             waits for                              guards
//   1 async_wait     this thread's copies of q              q of the tile, before the first the keys
//     __syncthreads  all warps                              the same of all threads; the tile before has been worked off
//   2 async_wait     this thread's copies of d_o            d_o of the tile
//     __syncthreads  all warps                              the same of all threads
//   3 __syncthreads  all warps                              ds of all keys, statistics of the next tile; d_o has been read
//
// q of the next tile is loaded after the first of them, d_o after the last.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm80/heuristics.h"
#include "cuda/sm80/ptx/math.cuh"
#include "cuda/sm80/ptx/turn.cuh"
#include "cuda/sm80/training/params.h"
#include "cuda/sm80/training/rows.cuh"

namespace openmsa::cuda::sm80::training {

/// What is known of a tile's rows.
struct TileRows {
  float lse2[kTileRows];
  float delta[kTileRows];
  float to_fixed[kTileRows];
  std::int32_t last_key[kTileRows];  // of the kv_block, that the row sees; -1: there is no such row
  std::int32_t q_row[kTileRows];     // of each row's query; -1: none
  bool is_masked;                    // some row does not see all keys
  bool is_poisoned;                  // some row is not finite
};

template <class Element, int kDim>
struct BackwardConfig {
  using Tile = TrainingTile<Element, kDim>;
  static constexpr int kStages = 2;
  struct Storage {
    alignas(kTileAlignment) char k[kTileKeys * Tile::kRowBytes];
    alignas(kTileAlignment) char v[kTileKeys * Tile::kRowBytes];
    alignas(kTileAlignment) char q[kStages][kTileRows * Tile::kRowBytes];
    alignas(kTileAlignment) char d_o[kTileRows * Tile::kRowBytes];
    alignas(kTileAlignment) char ds[Tile::kScoreBytes];
    alignas(16) TileRows rows[kStages];
    std::int32_t next_item;
  };
  static_assert(sizeof(Storage) <= kSharedBytes);
};

/// Statistics of one row of a tile, in the lanes of a warp.
struct RowOfTile {
  float lse2, delta, to_fixed;
  std::int32_t q_row, last_key;

  /// Of the tile whose first visit is `begin`; first_position: see there.
  __device__ __forceinline__ RowOfTile(const generic::training::BackwardParams& p, const generic::ListItem& item,
                                       int begin, std::int32_t first_position, int row)
      : lse2(INFINITY), delta(0), to_fixed(0), last_key(-1) {
    const int shift = p.log2_group_size;
    q_row = p.work.visited_row(item, begin + (row >> shift));
    if (q_row < 0) return;
    const std::int64_t place = (p.work.place(item.head, q_row) << shift) + (row & ((1 << shift) - 1));
    lse2 = p.stats.lse2[place];
    delta = p.stats.delta[place];
    to_fixed = p.stats.to_fixed[place];
    last_key = min(first_position + q_row, p.batch.block_size - 1);
  }

  /// For all lanes of a warp.
  __device__ __forceinline__ void store(TileRows& rows, int row) const {
    rows.lse2[row] = lse2;
    rows.delta[row] = delta;
    rows.to_fixed[row] = to_fixed;
    rows.last_key[row] = last_key;
    rows.q_row[row] = q_row;
    const bool is_masked = __any_sync(kFullWarp, last_key < kTileKeys - 1);
    const bool is_poisoned = __any_sync(kFullWarp, !isfinite(to_fixed));
    if (row == 0) {
      rows.is_masked = is_masked;
      rows.is_poisoned = is_poisoned;
    }
  }
};

/// A lane's keys against the rows of a tile: `work(x, row, sees)` of every score.
template <class Tile, class Work>
__device__ __forceinline__ void for_each_score(typename Tile::Scores& x, const TileRows& rows, int key, int lane,
                                               const Work& work) {
#pragma unroll
  for (int i = 0; i < kTileRows / 2; ++i) {
    const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
    work(x[i / 4][i % 4], row, key + i / 2 % 2 * 8 <= rows.last_key[row]);
  }
}

/// p^T = exp2(s^T * scale_log2 - lse2), in the place of s^T; 0 where a row does not see the key.
template <class Tile>
__device__ __forceinline__ void probabilities(typename Tile::Scores& s, const TileRows& rows, float scale_log2, int key,
                                              int lane) {
  for_each_score<Tile>(s, rows, key, lane,
                       [&](float& x, int row, bool) { x = exp2_approx(fmaf(x, scale_log2, -rows.lse2[row])); });
  if (!rows.is_masked) return;
  for_each_score<Tile>(s, rows, key, lane, [&](float& x, int, bool sees) { x = sees ? x : 0; });
}

/// ds^T = p^T (dp^T - delta), in the place of dp^T; NaN where delta is and the row sees the key.
template <class Tile>
__device__ __forceinline__ void score_gradients(const typename Tile::Scores& p, typename Tile::Scores& dp,
                                                const TileRows& rows, int key, int lane) {
#pragma unroll
  for (int i = 0; i < kTileRows / 2; ++i) {
    const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
    dp[i / 4][i % 4] = p[i / 4][i % 4] * (dp[i / 4][i % 4] - rows.delta[row]);
  }
  if (!rows.is_masked) return;
  for_each_score<Tile>(dp, rows, key, lane,
                       [&](float& x, int row, bool sees) { x = sees ? fmaf(0, rows.delta[row], x) : 0; });
}

/// NaN in d_v of the keys that a row without finite lse or d_o sees, whatever its probabilities are.
template <class Tile>
__device__ __forceinline__ void poison_keys(typename Tile::KeyGradients& d_v, const TileRows& rows, int key, int lane) {
  float nan[2] = {0, 0};  // of the lane's keys
#pragma unroll 1          // rare
  for (int row = lane % 4; row < kTileRows; row += 4) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (key + 8 * i <= rows.last_key[row] && isnan(rows.to_fixed[row])) nan[i] = NAN;
    }
  }
#pragma unroll
  for (float& x : nan) x = quad_sum(x);
#pragma unroll
  for (int i = 0; i < Tile::kDim / 2; ++i) d_v[i / 4][i % 4] += nan[i / 2 % 2];
}

/// Adds a warp's part of d_q to the sums in memory.
template <class Tile>
__device__ __forceinline__ void add_d_q(const generic::training::BackwardParams& p, const generic::ListItem& item,
                                        const typename Tile::RowGradients& d_q, const TileRows& rows, int warp,
                                        int lane) {
  const int group = 1 << p.log2_group_size;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = Tile::own_row(warp) + i * 8 + lane / 4;
    const std::int32_t q_row = rows.q_row[row];
    if (q_row < 0) continue;
    const float to_fixed = rows.to_fixed[row];
    std::int32_t* const sums = p.d_q_sums + p.work.place(item.head, q_row) * (group * Tile::kDim);
#pragma unroll
    for (int n = 0; n < Tile::kOwnColumns; ++n) {
      const int channel = Tile::own_channel(warp) + n * 8 + lane % 4 * 2;
      std::int32_t* const to = sums + generic::training::fixed_place(Tile::kDim, group, row & (group - 1), channel);
      atomicAdd(to, __float2int_rn(d_q[n][2 * i] * to_fixed));
      atomicAdd(to + 1, __float2int_rn(d_q[n][2 * i + 1] * to_fixed));
    }
  }
}

template <class Config>
__device__ __forceinline__ void backward_item(const generic::training::BackwardParams& p, const BackwardTensors& t,
                                              const generic::ListItem& item, typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int shift = p.log2_group_size, capacity = kTileRows >> shift, key = warp * kWarpKeys + lane / 4;
  const SequenceKeys keys = keys_of(p.batch, item);
  const std::int32_t first_key = item.block * p.batch.block_size, first_row = first_position(p.batch, item);
  const std::int32_t first_head = item.head << shift;
  const std::uint32_t k = shared_address(storage.k), v = shared_address(storage.v), ds = shared_address(storage.ds),
                      d_o = shared_address(storage.d_o);
  RowCopies<Tile> copies;
  const auto load_q = [&](int begin, int stage) {
    copies.find(p.work, item, begin, shift, thread);
    copies.copy(t.q, first_head, shift, shared_address(storage.q[stage]), thread);
    async_commit();
  };
  const auto load_d_o = [&] {  // of the same tile
    copies.copy(t.d_o, first_head, shift, d_o, thread);
    async_commit();
  };
  load_item_keys<Tile>(keys, t.k, item.head, first_key, k, thread);
  load_item_keys<Tile>(keys, t.v, item.head, first_key, v, thread);
  load_q(0, 0);
  load_d_o();
  if (warp == 0) RowOfTile(p, item, 0, first_row, lane).store(storage.rows[0], lane);
  async_wait<1>();
  clear_what_is_not_finite<Tile, kTileKeys>(storage.k, thread);  // rows that do not see a key meet it as 0 * NaN in d_q

  typename Tile::KeyGradients d_k = {}, d_v = {};
  int stage = 0;
#pragma unroll 1
  for (int begin = 0; begin < item.count; begin += capacity, stage ^= 1) {
    async_wait<1>();
    __syncthreads();
    const TileRows& rows = storage.rows[stage];
    load_q(begin + capacity, stage ^ 1);
    const std::uint32_t q = shared_address(storage.q[stage]);
    typename Tile::Scores s, dp;
    typename Tile::RoundedScores rounded;
    Tile::multiply_rows(k, q, s, warp, lane);
    probabilities<Tile>(s, rows, p.scale_log2, key, lane);
    async_wait<1>();
    __syncthreads();
    if (rows.is_poisoned && rows.is_masked) {  // keys that a row does not see meet it as 0 * NaN in d_k and d_v
      clear_what_is_not_finite<Tile, kTileRows>(storage.q[stage], thread);
      clear_what_is_not_finite<Tile, kTileRows>(storage.d_o, thread);
      __syncthreads();
    }
    Tile::multiply_rows(v, d_o, dp, warp, lane);
    Tile::round(s, rounded);
    Tile::add_key_gradients(rounded, d_o, d_v, lane);
    if (rows.is_poisoned) poison_keys<Tile>(d_v, rows, key, lane);
    score_gradients<Tile>(s, dp, rows, key, lane);
    Tile::round(dp, rounded);
    Tile::store_scores(rounded, storage.ds, warp, lane);
    Tile::add_key_gradients(rounded, q, d_k, lane);
    if (warp == 0) RowOfTile(p, item, begin + capacity, first_row, lane).store(storage.rows[stage ^ 1], lane);
    __syncthreads();
    load_d_o();
    typename Tile::RowGradients d_q;
    Tile::multiply_keys(ds, k, d_q, warp, lane);
    add_d_q<Tile>(p, item, d_q, rows, warp, lane);
  }
  async_wait<0>();

  add_in_turn(p.work, item, [&] {
    const std::int64_t row = std::int64_t{item.head - p.work.first_head} * p.batch.total_k + keys.k_row + first_key;
    float* const sums = p.d_kv_sums + row * (2 * Tile::kDim);
    add_to_keys<Tile>(d_k, sums, 2 * Tile::kDim, keys.end - first_key, warp, lane);
    add_to_keys<Tile>(d_v, sums + Tile::kDim, 2 * Tile::kDim, keys.end - first_key, warp, lane);
  });
}

template <class Config>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const __grid_constant__ generic::training::BackwardParams p,
                    const __grid_constant__ BackwardTensors t) {
  extern __shared__ __align__(kTileAlignment) char shared[];
  auto& storage = *reinterpret_cast<typename Config::Storage*>(shared);
  wait_for_earlier_kernels();
  for_each_item(p.work, p.work.next_item, storage.next_item,
                [&](const generic::ListItem& item, std::int32_t) { backward_item<Config>(p, t, item, storage); });
}

}  // namespace openmsa::cuda::sm80::training
