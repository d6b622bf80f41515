// Attention with queries in the outer loop: a tile of 128 (query, head) rows, 32 for each of 4 warps, over kv_blocks
// that its queries share, which stream through shared memory 64 keys at a time. With a selection these are the tile's
// shared blocks, and the result of a query that kv_outer works for too is one more partial one (merge.cuh). Without one
// they are all kv_blocks that some query sees: dense attention.
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
    alignas(kTileAlignment) char k[kStageKeys * Product::kRowBytes];
    alignas(kTileAlignment) char v[kStageKeys * Product::kRowBytes];
    float k_scale[Product::kIsQuantized ? kStageKeys : 4];
    float v_scale[Product::kIsQuantized ? kStageKeys : 4];
  };
  struct Storage {
    Stage stages[kStages];
    alignas(kTileAlignment) char q[kPromptWarps][WarpQueries<Product>::kBytes];
    std::int32_t q_row[kPromptWarps];  // of the tile: wanted at the end, and in no register until then
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

/// Leaves finished row `i` of this thread as a partial result after those of kv_outer, where there are some. Returns
/// whether there are.
template <class Product>
__device__ __forceinline__ bool leave_partial(const PromptParams& p, std::int32_t number, int query, int head,
                                              const WarpAttention<Product, kWarpTiles>& attention, int i, int lane) {
  const ScheduleBatch& work = p.work;
  const std::int32_t slots = work.slot_counts[number * work.tile_queries + query];
  if (slots == 0) return false;
  if (slots < work.slots) {  // else kv_outer has all kv_blocks of the query
    const std::int32_t place = partial_row(work, number, slots, query, head, p.log2_group_size);
    PartialRow<Product>::store(attention.o[i / 2], i % 2, attention.inverse(i), work.partial_o, place, lane);
    if (lane % 4 == 0) work.partial_lse[place] = attention.lse_log2(i);
  }
  return true;
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 2) q_outer_kernel(const __grid_constant__ PromptBatches batches) {
  using Product = typename Config::Product;
  constexpr int kStageKeys = Config::kStageKeys, kRowBytes = Product::kRowBytes, kThreads = Config::kThreads;
  constexpr int kRows = 2 * kWarpTiles;  // of a thread
  extern __shared__ __align__(kTileAlignment) char shared[];
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
  // Row i of this thread is row `i * 8 + lane / 4` of its warp.
  const float k_scale = Product::kIsQuantized && t.k_scale.is_for_all() ? *t.k_scale.data : 1;
  const auto query_of = [&](int row) { return warp * WarpQueries<Product>::kRows + row >> p.log2_group_size; };
  const auto head_of = [&](int row) {
    return (tile.head << p.log2_group_size) + (row & ((1 << p.log2_group_size) - 1));
  };
  const WarpQueries<Product> q(storage.q[warp], lane);
  const std::int64_t my_row = tile.queries.q_row + min(query_of(lane), tile.queries.count - 1);
  const char* const my_q = WarpQueries<Product>::row_of(t.q, my_row, head_of(lane));
  float scale_log2[kRows];
#pragma unroll
  for (float& scale : scale_log2) scale = t.scale_log2 * k_scale;
  if constexpr (q.kIsAsync) {
    q.start(my_q);  // with the first stage
  } else {
    q.put(my_q, scale_log2);
  }
#pragma unroll
  for (int i = 0; i < Config::kStages - 1; ++i) load(i);

  // Queries of this warp, and their bits among the members of a shared block.
  const int first_query = query_of(0),
            end_query = min(query_of(WarpQueries<Product>::kRows - 1) + 1, tile.queries.count);
  const auto bits_before = [](int query) { return query < 32 ? (1u << query) - 1 : ~0u; };
  const std::uint32_t some = tile.shared == nullptr ? ~0u : bits_before(end_query) & ~bits_before(first_query);
  const std::uint32_t mine = first_query < end_query ? some : 0;

  storage.q_row[warp] = tile.queries.q_row;
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
    const std::int32_t position = tile.queries.position - first;  // of the tile, among the keys of the stage
    if ((block.members & mine) == 0 || position + end_query <= 0) continue;
    constexpr int kEverything[kRows] = {};
    if ((block.members & mine) == mine && position + first_query + 1 >= kStageKeys) {
#pragma unroll 1
      for (int key = 0; key < kStageKeys; key += Config::kStepKeys) {
        attention.template add<Config::kStepKeys, false>(q, in_shared, key, kEverything, scale_log2, lane);
      }
    } else {
#pragma unroll 1
      for (int key = 0; key < kStageKeys; key += Config::kStepKeys) {
        int limit[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int query = query_of(i * 8 + lane / 4);
          const bool wants = tile.shared == nullptr || (block.members >> query & 1) != 0;
          limit[i] = wants ? position + query + 1 - key : 0;
        }
        attention.template add<Config::kStepKeys, true>(q, in_shared, key, limit, scale_log2, lane);
      }
    }
  }
  async_wait<0>();

  attention.finish(t.v_scale.is_for_all() ? *t.v_scale.data : 1);
  const OutputRows& out = t.out;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int query = query_of(i * 8 + lane / 4);
    bool exists = query < tile.queries.count;
    const std::int32_t query_head = head_of(i * 8 + lane / 4), head = query_head & ((1 << p.log2_group_size) - 1);
    if (exists && !p.is_dense) exists = !leave_partial(p, tile.number, query, head, attention, i, lane);
    const std::int64_t q_row = storage.q_row[warp] + query;
    auto* const o =
        static_cast<typename Product::Element*>(out.o) + q_row * out.o_strides[0] + query_head * out.o_strides[1];
    Product::store_row(attention.o[i / 2], i % 2, attention.inverse(i), o, exists, lane);
    if (out.lse != nullptr && exists && lane % 4 == 0) {
      out.lse[q_row * out.lse_strides[0] + query_head * out.lse_strides[1]] = attention.lse_log2(i) * kLn2;
    }
  }
}

}  // namespace openmsa::cuda::sm80::attend
