// The dense attention probability that falls in each kv_block:
//
//   mass[i,b,r] = 1 / group_size sum_{h of r} sum_{j in b, j <= i} exp(softmax_scale * q[i,h] . k[j,r] - lse[i,h])
//
// A CTA takes tile after tile of 128 (query, head) rows, 64 for each of two consumer warpgroups, and goes over the keys
// that they see twice: for lse, which stays in registers, then for the masses. A quad's lanes hold the columns of a row,
// and the rows of a query are neighbours: both are added up by shuffles, always in the same order.
//
//   barrier      arrivals                  waited on by  guards
//   q_full[i]    producer + bytes of q     consumers     a tile and its queries; the next tile's come early
//   q_empty[i]   one thread per consumer   producer      both warpgroups are done with the tile
//   full[i]      producer + bytes          consumers     k of stage i
//   empty[i]     one thread per consumer   producer      both warpgroups are done with stage i
//
// Per key tile (head_dim 128) and pass: a product of 1024 cycles; one warpgroup's product runs beside the other's
// exponentials. A figure of training's health: no more was done for its speed.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/sm90/dense/prompt_tile.cuh"
#include "cuda/sm90/recall/params.h"
#include "cuda/sm90/tile/causal_mask.cuh"
#include "cuda/sm90/tile/load_keys.cuh"
#include "cuda/sm90/tile/softmax.cuh"

namespace openmsa::cuda::sm90::recall {

using dense::kConsumers;
using dense::kPromptKeys;
using dense::PromptTile;

template <class Element, int kDim>
struct MassConfig {
  using Tile = AttentionTile<Element, kDim, kPromptKeys>;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kStages = 4;
  static constexpr int kQueryStages = 2;

  struct Storage {
    alignas(1024) Element q[kQueryStages][kConsumers][kWarpgroupRows * kDim];
    alignas(1024) Element ring[kStages][kPromptKeys * kDim];
    PromptTile tiles[kQueryStages];
    std::uint64_t full[kStages], empty[kStages], q_full[kQueryStages], q_empty[kQueryStages];
  };
};

/// The CTA's tiles: every gridDim-th of heads * tiles, the last ones of a head, which see most keys, first.
struct TileLoop {
  const RecallParams& p;
  std::int32_t number;

  __device__ __forceinline__ explicit TileLoop(const RecallParams& p)
      : p(p), number(static_cast<std::int32_t>(blockIdx.x)) {}
  __device__ __forceinline__ bool is_over() const { return number >= p.heads * p.tiles; }
  __device__ __forceinline__ void next() { number += static_cast<std::int32_t>(gridDim.x); }
  __device__ __forceinline__ std::int32_t tile() const { return p.first_tile + p.tiles - 1 - number % p.tiles; }
  __device__ __forceinline__ PromptTile load() const {
    if (tile() >= p.index.tiles[p.batch.batch + 1]) return dense::no_tile();
    return dense::prompt_tile(p, number / p.tiles, tile());
  }
};

template <class Config>
__device__ __forceinline__ void produce_mass(const RecallParams& p, const CUtensorMap& map_q, const CUtensorMap& map_k,
                                             typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  PipelineState<Config::kStages> ring;
  PipelineState<Config::kQueryStages> queries;
  for (TileLoop loop(p); !loop.is_over(); loop.next(), queries.advance()) {
    const PromptTile tile = loop.load();
    std::uint64_t* const full = &storage.q_full[queries.stage];
    EmptyBarrier::wait(&storage.q_empty[queries.stage], queries.phase ^ 1);
    storage.tiles[queries.stage] = tile;
    if (tile.exists()) {
      dense::load_queries<Tile>(p, map_q, tile, storage.q[queries.stage], full);
    } else {
      EmptyBarrier::arrive(full);
    }
    for (int pass = 0; pass < 2; ++pass) {
      for (std::int32_t key_tile = 0; key_tile < tile.key_tiles; ++key_tile, ring.advance()) {
        EmptyBarrier::wait(&storage.empty[ring.stage], ring.phase ^ 1);
        load_keys<typename Tile::Element, Tile::kDim, kPromptKeys>(
            map_k, p.batch, tile.queries.sequence, tile.queries.view, key_tile * kPromptKeys,
            {p.key_box_rows, tile.head}, storage.ring[ring.stage], &storage.full[ring.stage]);
      }
    }
  }
}

/// A consumer's rows of a tile.
template <class Config>
struct MassConsumer {
  using Tile = typename Config::Tile;

  const RecallParams& p;
  typename Config::Storage& storage;
  int consumer;
  int thread;                             // of the warpgroup
  PipelineState<Config::kStages> ring{};  // the next key tile

  // Of the tile:
  const typename Tile::Element* q;
  std::int32_t positions[2];  // of the thread's rows

  /// The scores of the next key tile, -inf where a row does not see the key.
  __device__ __forceinline__ void next_scores(const PromptTile& tile, std::int32_t key_tile, typename Tile::Scores& s) {
    FullBarrier::wait(&storage.full[ring.stage], ring.phase);
    Tile::start_scores(q, storage.ring[ring.stage], s, thread);
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(s);
    if (thread == 0) EmptyBarrier::arrive(&storage.empty[ring.stage]);
    ring.advance();
    if (key_tile < tile.first_masked) return;
    const int last[2] = {positions[0] - key_tile * kPromptKeys, positions[1] - key_tile * kPromptKeys};
    hide_later_keys<Tile>(s, last, thread % 32);
  }

  /// lse of the thread's rows to the base 2; inf for those that see nothing.
  __device__ __forceinline__ void log_sum_exp(const PromptTile& tile, float (&lse)[2]) {
    Softmax softmax;
    for (std::int32_t key_tile = 0; key_tile < tile.key_tiles; ++key_tile) {
      typename Tile::Scores s;
      float alpha[2];
      next_scores(tile, key_tile, s);
      softmax.template update<Tile>(s, p.scale_log2, alpha);
    }
    for (int i = 0; i < 2; ++i) {
      const float sum = quad_sum(softmax.sum[i]);
      lse[i] = sum == 0 ? INFINITY : softmax.max[i] + log2_approx(sum);
    }
  }

  /// Sum over the heads of a query of what their rows hold, `x` of row i each, in its first row.
  __device__ __forceinline__ void sum_heads(float (&x)[2]) const {
    for (int i = 0; i < 2; ++i) {
      x[i] = quad_sum(x[i]);
      for (int rows = 1; rows < min(1 << p.log2_group_size, 8); rows *= 2) {
        x[i] += __shfl_xor_sync(kFullWarp, x[i], 4 * rows);
      }
    }
    if (p.log2_group_size == 4) x[0] += x[1];
  }

  /// Writes mass of kv_block `block` of the tile `number`, from the sums of its probabilities in each row.
  __device__ __forceinline__ void write_mass(const PromptTile& tile, std::int32_t number, std::int32_t block,
                                             float (&sums)[2]) const {
    sum_heads(sums);
    const int group = 1 << p.log2_group_size, lane = thread % 32;
    for (int i = 0; i < 2; ++i) {
      const int row = thread / 32 * 16 + i * 8 + lane / 4;
      const int query = consumer * (p.tile_queries / kConsumers) + (row >> p.log2_group_size);
      if (lane % 4 != 0 || row % group != 0 || query >= tile.queries.count || block >= p.max_blocks) continue;
      p.mass_row(tile.head, number, query)[block] = sums[i] / static_cast<float>(group);
    }
  }

  /// The masses of the kv_blocks of each key tile, one or two.
  __device__ __forceinline__ void masses(const PromptTile& tile, std::int32_t number, const float (&lse)[2]) {
    using namespace cute;
    for (std::int32_t key_tile = 0; key_tile < tile.key_tiles; ++key_tile) {
      typename Tile::Scores s;
      next_scores(tile, key_tile, s);
      float sums[2][2] = {};  // of half of the key tile, of row
      CUTE_UNROLL
      for (int i = 0; i < size(s); ++i) {  // s(i): row i / 2 % 2, column i / 4 * 8 + lane % 4 * 2 + i % 2
        const int half = i / (size(s) / 2), row = i / 2 % 2;
        sums[half][row] += exp2_approx(fmaf(s(i), p.scale_log2, -lse[row]));
      }
      if (p.batch.block_size == kPromptKeys) {
        float whole[2] = {sums[0][0] + sums[1][0], sums[0][1] + sums[1][1]};
        write_mass(tile, number, key_tile, whole);
      } else {
        write_mass(tile, number, 2 * key_tile, sums[0]);
        write_mass(tile, number, 2 * key_tile + 1, sums[1]);
      }
    }
  }
};

template <class Config>
__device__ __forceinline__ void consume_mass(const RecallParams& p, typename Config::Storage& storage, int consumer,
                                             int thread) {
  MassConsumer<Config> state{p, storage, consumer, thread};
  PipelineState<Config::kQueryStages> queries;
  for (TileLoop loop(p); !loop.is_over(); loop.next(), queries.advance()) {
    FullBarrier::wait(&storage.q_full[queries.stage], queries.phase);
    const PromptTile& tile = storage.tiles[queries.stage];
    state.q = storage.q[queries.stage][consumer];
    for (int i = 0; i < 2; ++i) {
      const int row = consumer * kWarpgroupRows + thread / 32 * 16 + i * 8 + thread % 32 / 4;
      state.positions[i] = tile.queries.position + (row >> p.log2_group_size);
    }
    float lse[2];
    state.log_sum_exp(tile, lse);
    state.masses(tile, loop.tile(), lse);
    if (thread == 0) EmptyBarrier::arrive(&storage.q_empty[queries.stage]);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    mass_kernel(const RecallParams p, const __grid_constant__ CUtensorMap map_q,
                const __grid_constant__ CUtensorMap map_k) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  init_barriers([&] {
    init_ring(storage.full, storage.empty, kConsumers);
    init_ring(storage.q_full, storage.q_empty, kConsumers);
  });
  wait_for_earlier_kernels();
  if (threadIdx.x < 128) {
    if (threadIdx.x == 0) produce_mass<Config>(p, map_q, map_k, storage);
  } else {
    const int thread = thread_index();
    consume_mass<Config>(p, storage, thread / 128 - 1, thread % 128);
  }
}

}  // namespace openmsa::cuda::sm90::recall
