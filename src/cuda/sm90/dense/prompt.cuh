// Dense attention of prompts.
//
// A CTA takes tile after tile of 128 (query, head) rows. Two consumer warpgroups of 64 rows go over the keys from the
// last one that they see to the first, with an online softmax: only the first one or two key tiles need a mask. The
// next product q k^T runs beside the softmax, the product p v beside the next softmax.
//
//   barrier      arrivals                         waited on by  guards
//   q_full[i]    producer + bytes of q            consumers     a tile and its queries; the next tile's come early
//   q_empty[i]   one thread per consumer          producer      o, staged where q was, is written
//   full[i]      producer + bytes                 consumers     k or v of stage i
//   empty[i]     one thread per consumer          producer      both warpgroups are done with stage i
//   kWarpgroup   128 threads of a warpgroup       the same      o is staged / has been read
//   kTailCleared 256 threads                      the same      values that no query sees are zero
//   kTurn        128 threads of the other         one of them   its turn on the tensor cores
//                warpgroup
//
// Per key tile (head_dim 128): products 2048 cycles, 16384 exponentials 1024 cycles beside them.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm90/dense/prompt_tile.cuh"
#include "cuda/sm90/tile/causal_mask.cuh"
#include "cuda/sm90/tile/load_keys.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
#include "cuda/sm90/tile/softmax.cuh"
#include "cuda/sm90/tile/write_rows.cuh"

namespace openmsa::cuda::sm90::dense {

/// Named barriers of the table above.
enum class PromptBarrier {
  kWarpgroup = 1,    // and 2: of each warpgroup
  kTailCleared = 3,  // of both
  kTurn = 4,         // and 5: of each warpgroup
};

template <class Element, int kDim>
struct PromptConfig {
  using Tile = AttentionTile<Element, kDim, kPromptKeys>;
  using Probabilities = decltype(Tile::round_scores(std::declval<typename Tile::Scores>()));
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kStages = 5;
  static constexpr int kQueryStages = 2;

  struct Storage {
    alignas(1024) Element q[kQueryStages][kConsumers][kWarpgroupRows * kDim];
    alignas(1024) Element ring[kStages][kPromptKeys * kDim];
    PromptTile tiles[kQueryStages];
    std::uint64_t full[kStages], empty[kStages], q_full[kQueryStages], q_empty[kQueryStages];
  };
};

/// Loads tile after tile; one thread calls it.
template <class Config>
__device__ __forceinline__ void produce_prompt(const PromptParams& p, const CUtensorMap& map_q,
                                               const CUtensorMap& map_k, const CUtensorMap& map_v,
                                               typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  PipelineState<Config::kStages> ring;
  PipelineState<Config::kQueryStages> queries;
  for (;; queries.advance()) {
    const PromptTile tile = tile_in_order(p, atomicAdd(p.next_tile, 1));
    std::uint64_t* const full = &storage.q_full[queries.stage];
    EmptyBarrier::wait(&storage.q_empty[queries.stage], queries.phase ^ 1);
    storage.tiles[queries.stage] = tile;
    if (!tile.exists()) return EmptyBarrier::arrive(full);
    load_queries<Tile>(p, map_q, tile, storage.q[queries.stage], full);
    for (std::int32_t key_tile = tile.key_tiles - 1; key_tile >= 0; --key_tile) {
      for (const CUtensorMap* map : {&map_k, &map_v}) {
        EmptyBarrier::wait(&storage.empty[ring.stage], ring.phase ^ 1);
        load_keys<typename Tile::Element, Tile::kDim, kPromptKeys>(
            *map, p.batch, tile.queries.sequence, tile.queries.view, key_tile * kPromptKeys,
            {p.key_box_rows, tile.head}, storage.ring[ring.stage], &storage.full[ring.stage]);
        ring.advance();
      }
    }
  }
}

/// A consumer's way through the key tiles of a tile.
template <class Config>
struct PromptConsumer {
  using Tile = typename Config::Tile;
  using Element = typename Tile::Element;

  typename Config::Storage& storage;
  float scale_log2;
  int consumer;
  int thread;                             // of the warpgroup
  PipelineState<Config::kStages> ring{};  // the next key tile's k; its v is one stage behind

  // Of the tile:
  const Element* q;
  std::int32_t positions[2];  // of the thread's rows
  Softmax softmax;
  typename Tile::Values o;
  typename Config::Probabilities probabilities;  // of the key tile whose v has not been used yet

  __device__ __forceinline__ void release(int stage) {
    if (thread == 0) EmptyBarrier::arrive(&storage.empty[stage]);
  }

  __device__ __forceinline__ void wait_for_keys() { FullBarrier::wait(&storage.full[ring.stage], ring.phase); }

  __device__ __forceinline__ void start_scores(typename Tile::Scores& s) {
    Tile::start_scores(opaque(q), storage.ring[ring.stage], s, thread);
  }

  __device__ __forceinline__ void start_values(PipelineState<Config::kStages> at) {
    FullBarrier::wait(&storage.full[at.stage], at.phase);
    Tile::start_values(probabilities, storage.ring[at.stage], o, true, thread);
  }

  __device__ __forceinline__ void hide_keys(typename Tile::Scores& s, std::int32_t key_tile) {
    const int last[2] = {positions[0] - key_tile * kPromptKeys, positions[1] - key_tile * kPromptKeys};
    hide_later_keys<Tile>(s, last, thread % 32);
  }

  /// Scores and softmax of the tile's last key tile, of which the first `valid` keys are seen by some query.
  __device__ __forceinline__ void first_step(std::int32_t key_tile, int valid) {
    typename Tile::Scores s;
    wait_for_keys();
    start_scores(s);
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(s);
    release(ring.stage);
    hide_keys(s, key_tile);
    float alpha[2];
    softmax.template update<Tile>(s, scale_log2, alpha, RaiseLazily{});
    probabilities = Tile::round_scores(s);
    if (valid < kPromptKeys) {
      const auto values = ring.after(1);
      FullBarrier::wait(&storage.full[values.stage], values.phase);
      clear_tail<Tile>(storage.ring[values.stage], valid, consumer * 128 + thread, 128 * kConsumers,
                       PromptBarrier::kTailCleared);
    }
  }

  /// Scores and softmax of the next key tile beside the values of the one before:
  ///
  ///   scores 0 | softmax 0 | scores 1, values 0 | softmax 1 beside values 0 | scores 2, values 1 | ...
  ///
  /// The two warpgroups take turns in starting products. Without turns they fall in step, and the tensor cores idle
  /// while both compute their softmax. s lives from its product to its rounding, no longer: beside o and the
  /// probabilities there is no room for a second.
  template <bool kIsMasked>
  __device__ __forceinline__ void step(std::int32_t key_tile) {
    const auto values = ring.after(1);
    ring.advance(2);
    typename Tile::Scores s;
    wait_for_keys();
    sync(of_consumer(PromptBarrier::kTurn, consumer), 128 * kConsumers);
    start_scores(s);
    start_values(values);
    arrive(of_consumer(PromptBarrier::kTurn, 1 - consumer), 128 * kConsumers);
    cute::warpgroup_wait<1>();
    cute::warpgroup_fence_operand(s);
    release(ring.stage);
    if constexpr (kIsMasked) hide_keys(s, key_tile);
    float alpha[2];
    softmax.template update<Tile>(s, scale_log2, alpha, RaiseLazily{});
    softmax.finish();
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(o);
    release(values.stage);
    if (__any_sync(kFullWarp, alpha[0] != 1 || alpha[1] != 1)) scale_values<Tile>(o, alpha);
    cute::warpgroup_fence_operand(s);  // not rounded earlier: the product before reads the probabilities before
    probabilities = Tile::round_scores(s);
  }

  /// The values of the first key tile.
  __device__ __forceinline__ void last_step() {
    const auto values = ring.after(1);
    start_values(values);
    ring.advance(2);
    cute::warpgroup_wait<0>();
    cute::warpgroup_fence_operand(o);
    release(values.stage);
  }

  __device__ __forceinline__ void attend(const PromptTile& tile) {
    std::int32_t key_tile = tile.key_tiles - 1;
    if (key_tile < 0) return;
    first_step(key_tile, tile.last_position() + 1 - key_tile * kPromptKeys);
    for (--key_tile; key_tile >= tile.first_masked; --key_tile) step<true>(key_tile);
    for (; key_tile >= 0; --key_tile) step<false>(key_tile);
    last_step();
  }
};

template <class Config>
__device__ __forceinline__ void consume_prompt(const PromptParams& p, typename Config::Storage& storage, int consumer,
                                               int thread) {
  using Tile = typename Config::Tile;
  const int per_consumer = p.tile_queries / kConsumers;
  PromptConsumer<Config> state{storage, p.scale_log2, consumer, thread};
  PipelineState<Config::kQueryStages> queries;
  if (consumer == 1) arrive(PromptBarrier::kTurn, 128 * kConsumers);
  for (;; queries.advance()) {
    FullBarrier::wait(&storage.q_full[queries.stage], queries.phase);
    const PromptTile& tile = storage.tiles[queries.stage];
    if (!tile.exists()) break;
    auto* const q = storage.q[queries.stage][consumer];
    state.q = q;
    for (int i = 0; i < 2; ++i) {
      const int row = thread / 32 * 16 + i * 8 + thread % 32 / 4;
      state.positions[i] = tile.queries.position + consumer * per_consumer + (row >> p.log2_group_size);
    }
    state.softmax = {};
    cute::clear(state.o);
    state.attend(tile);
    const OutputTile at{tile.queries.q_row + consumer * per_consumer,
                        max(0, min(per_consumer, tile.queries.count - consumer * per_consumer)),
                        tile.head << p.log2_group_size, p.log2_group_size};
    write_lse<Tile>(p.out, at, state.softmax, thread);
    write_values<Tile>(p.out, at, state.softmax, state.o, q, thread, of_consumer(PromptBarrier::kWarpgroup, consumer));
    if (thread == 0) EmptyBarrier::arrive(&storage.q_empty[queries.stage]);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    prompt_kernel(const PromptParams p, const __grid_constant__ CUtensorMap map_q,
                  const __grid_constant__ CUtensorMap map_k, const __grid_constant__ CUtensorMap map_v) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  init_barriers([&] {
    init_ring(storage.full, storage.empty, kConsumers);
    init_ring(storage.q_full, storage.q_empty, kConsumers);
  });
  wait_for_earlier_kernels();

  // 64512 registers of the CTA: 40 x 128 for the producer, 232 x 256 for the consumers.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    if (threadIdx.x == 0) produce_prompt<Config>(p, map_q, map_k, map_v, storage);
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    const int thread = thread_index();
    consume_prompt<Config>(p, storage, thread / 128 - 1, thread % 128);
  }
}

}  // namespace openmsa::cuda::sm90::dense
