// Attention with queries in the outer loop: a tile of 128 (query, head) rows, 32 for each of 4 warps, over kv_blocks
// that its queries share, which stream through shared memory 64 keys at a time. With a selection these are the tile's
// shared blocks, and afterwards the partial results of kv_outer are merged:
//
//   o = sum_i 2^(lse_i - lse) o_i,   lse = log2 sum_i 2^lse_i,      i over the shared blocks together and kv_outer's slots
//
// Without one they are all kv_blocks that some query sees: dense attention.
//
//   wait           waits for                             guards
//   async_wait     this thread's copies of a stage       (with the barrier) the stage has arrived
//   __syncthreads  all warps, once per stage             the stage before has been read and may be loaded again
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm80/attend/params.h"
#include "cuda/sm80/attend/partial_row.cuh"
#include "cuda/sm80/attend/query_rows.cuh"
#include "cuda/sm80/attend/warp_attention.cuh"
#include "cuda/sm80/heuristics.h"
#include "cuda/sm80/tile/load_keys.cuh"

namespace openmsa::cuda::sm80::attend {

template <class Element, class Cached, int kDim>
struct QOuterConfig {
  using Product = KeyProduct<Element, Cached, kDim>;
  static constexpr int kThreads = 32 * kPromptWarps;
  static constexpr int kStageKeys = 64, kStages = 2;
  static constexpr int kStepKeys = 32;  // whose scores are in registers at a time
  struct Stage {
    alignas(128) char k[kStageKeys * Product::kRowBytes];
    alignas(128) char v[kStageKeys * Product::kRowBytes];
    float k_scale[Product::kIsQuantized ? kStageKeys : 4];
    float v_scale[Product::kIsQuantized ? kStageKeys : 4];
  };
  struct Storage {
    Stage stages[kStages];
    uint4 q[kPromptWarps][kWarpTiles][Product::kSteps][32];  // fragments of each lane
  };
  static_assert(sizeof(Storage) <= kSharedBytes);
};

/// A tile of queries with the heads of one KV head, and the kv_blocks that it walks.
struct PromptTile {
  QueryTile queries;
  std::int32_t head;          // KV head
  std::int32_t number;        // in its schedule batch
  std::int32_t blocks;        // that it walks
  const SharedBlock* shared;  // nullptr: kv_blocks 0 to blocks - 1, wanted by all queries

  __device__ __forceinline__ SharedBlock block(std::int32_t i) const {
    return shared == nullptr ? SharedBlock{i, ~0u} : shared[i];
  }
  /// Keys that some query sees: none after them is read.
  __device__ __forceinline__ std::int32_t visible_keys() const { return max(queries.position + queries.count, 0); }
};

/// The tile of this CTA; dense tiles with most keys come first.
__device__ __forceinline__ bool find_prompt_tile(const PromptParams& p, PromptTile& tile) {
  const std::int32_t tiles = p.index.tiles[p.batch.batch + 1], cta = blockIdx.x;
  if (p.is_dense) {
    if (cta >= tiles * p.heads) return false;
    tile.queries = find_tile(p.batch, p.index, tiles - 1 - cta / p.heads, p.work.tile_queries);
    tile.head = cta % p.heads;
    tile.blocks = (tile.visible_keys() + p.batch.block_size - 1) >> log2_of(p.batch.block_size);
    tile.shared = nullptr;
    return true;
  }
  tile.number = cta;
  if (p.work.first_tile + cta >= tiles) return false;
  tile.queries = find_tile(p.batch, p.index, p.work.first_tile + cta, p.work.tile_queries);
  tile.head = p.work.head;
  tile.blocks = p.work.shared_counts[cta];
  tile.shared = p.work.shared + std::int64_t{cta} * p.work.tile_queries * p.topk;
  return true;
}

/// Adds the partial results of kv_outer to finished row `i` of this thread, which is head `head` of `query` of the tile.
template <class Product>
__device__ __forceinline__ void merge_partials(const PromptParams& p, const PromptTile& tile, int query, int head,
                                               WarpAttention<Product, kWarpTiles>& attention, int i, int lane) {
  const ScheduleBatch& work = p.work;
  const std::int32_t slots = work.slot_counts[tile.number * work.tile_queries + query];
  if (slots == 0) return;
  const auto row = [&](std::int32_t slot) {
    return (((tile.number * work.slots + slot) * work.tile_queries + query) << p.log2_group_size) + head;
  };
  const float own = attention.lse_log2(i);
  float top = own;
  for (std::int32_t slot = 0; slot < slots; ++slot) top = fmaxf(top, work.partial_lse[row(slot)]);
  const float shift = finite_shift(top);
  float total = exp2_approx(own - shift);
  attention.scale_row(i, total * attention.inverse(i));
#pragma unroll 2
  for (std::int32_t slot = 0; slot < slots; ++slot) {
    const std::int32_t at = row(slot);
    const float share = exp2_approx(work.partial_lse[at] - shift);
    total += share;
    PartialRow<Product>::add(attention.o[i / 2], i % 2, share, work.partial_o, at, lane);
  }
  attention.max[i] = top;
  attention.sum[i] = total;
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 2) q_outer_kernel(const __grid_constant__ PromptBatches batches) {
  using Product = typename Config::Product;
  constexpr int kStageKeys = Config::kStageKeys, kRowBytes = Product::kRowBytes, kThreads = Config::kThreads;
  constexpr int kRows = 2 * kWarpTiles;  // of a thread
  extern __shared__ __align__(128) char shared[];
  auto& storage = *reinterpret_cast<typename Config::Storage*>(shared);
  const PromptParams& p = batches.of[blockIdx.y];
  const AttentionTensors& t = p.tensors;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  wait_for_earlier_kernels();
  PromptTile tile{};
  if (!find_prompt_tile(p, tile)) return;

  const int log2_block = log2_of(p.batch.block_size), log2_steps = log2_block - log2_of(kStageKeys);  // of a kv_block
  const std::int32_t steps = tile.blocks << log2_steps;
  const SequenceKeys keys{&p.batch, tile.queries.sequence, tile.queries.view.k_row, tile.visible_keys()};
  const auto first_key = [&](std::int32_t step, const SharedBlock& block) {
    return (block.block << log2_block) + (step & ((1 << log2_steps) - 1)) * kStageKeys;
  };
  const auto load = [&](std::int32_t step) {
    if (step < steps) {
      typename Config::Stage& to = storage.stages[step % Config::kStages];
      const std::int32_t first = first_key(step, tile.block(step >> log2_steps));
      load_keys<kStageKeys, kRowBytes, kThreads>(keys, t.k, tile.head, first, shared_address(to.k), thread);
      load_keys<kStageKeys, kRowBytes, kThreads>(keys, t.v, tile.head, first, shared_address(to.v), thread);
      if constexpr (Product::kIsQuantized) {
        if (t.k_scale.is_per_token()) {
          load_scales<kStageKeys, kThreads>(keys, t.k_scale, tile.head, first, shared_address(to.k_scale), thread);
        }
        if (t.v_scale.is_per_token()) {
          load_scales<kStageKeys, kThreads>(keys, t.v_scale, tile.head, first, shared_address(to.v_scale), thread);
        }
      }
    }
    async_commit();
  };
#pragma unroll
  for (int i = 0; i < Config::kStages - 1; ++i) load(i);

  const float k_scale = Product::kIsQuantized && t.k_scale.is_for_all() ? *t.k_scale.data : 1;
  const SharedRows<Product> q{&storage.q[warp][0][0][lane]};
  float scale_log2[kRows];
  int query[kRows];  // of the tile, of this thread's rows
  const auto head = [&](int i) { return (warp * kRows + i) * 8 + lane / 4 & ((1 << p.log2_group_size) - 1); };
#pragma unroll
  for (int i = 0; i < kRows; ++i) query[i] = (warp * kRows + i) * 8 + lane / 4 >> p.log2_group_size;
  put_queries(
      t, k_scale, q, scale_log2, lane,
      [&](int i) { return tile.queries.q_row + min(query[i], tile.queries.count - 1); },
      [&](int i) { return (tile.head << p.log2_group_size) + head(i); });
  __syncwarp();

  WarpAttention<Product, kWarpTiles> attention;
#pragma unroll 1
  for (std::int32_t step = 0; step < steps; ++step) {
    async_wait<Config::kStages - 2>();
    __syncthreads();
    load(step + Config::kStages - 1);
    const SharedBlock block = tile.block(step >> log2_steps);
    const std::int32_t first = first_key(step, block);
    const typename Config::Stage& now = storage.stages[step % Config::kStages];
    const KeysInShared in_shared{shared_address(now.k), shared_address(now.v),
                                 t.k_scale.is_per_token() ? now.k_scale : nullptr,
                                 t.v_scale.is_per_token() ? now.v_scale : nullptr};
    int limit[kRows], least = kStageKeys, most = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool exists = query[i] < tile.queries.count;
      const bool wants = exists && (tile.shared == nullptr || (block.members >> query[i] & 1) != 0);
      limit[i] = wants ? tile.queries.position + query[i] + 1 - first : 0;
      least = min(least, limit[i]), most = max(most, limit[i]);
    }
    if (!__any_sync(kFullWarp, most > 0)) continue;
    if (__all_sync(kFullWarp, least == kStageKeys)) {
#pragma unroll 1
      for (int key = 0; key < kStageKeys; key += Config::kStepKeys) {
        attention.template add<Config::kStepKeys, false>(q, in_shared, key, limit, scale_log2, lane);
      }
    } else {
#pragma unroll 1
      for (int key = 0; key < kStageKeys; key += Config::kStepKeys) {
        attention.template add<Config::kStepKeys, true>(q, in_shared, key, limit, scale_log2, lane);
#pragma unroll
        for (int& seen : limit) seen -= Config::kStepKeys;
      }
    }
  }
  async_wait<0>();

  attention.finish(t.v_scale.is_for_all() ? *t.v_scale.data : 1);
  const OutputRows& out = t.out;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const bool exists = query[i] < tile.queries.count;
    if (exists && !p.is_dense) merge_partials(p, tile, query[i], head(i), attention, i, lane);
    const std::int64_t q_row = tile.queries.q_row + query[i], query_head = (tile.head << p.log2_group_size) + head(i);
    auto* const o =
        static_cast<typename Product::Element*>(out.o) + q_row * out.o_strides[0] + query_head * out.o_strides[1];
    Product::store_row(attention.o[i / 2], i % 2, attention.inverse(i), o, exists, lane);
    if (out.lse != nullptr && exists && lane % 4 == 0) {
      out.lse[q_row * out.lse_strides[0] + query_head * out.lse_strides[1]] = attention.lse_log2(i) * kLn2;
    }
  }
}

}  // namespace openmsa::cuda::sm80::attend
