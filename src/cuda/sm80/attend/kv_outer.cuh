// Attention with kv_blocks in the outer loop: a CTA keeps one kv_block in shared memory, and its warps take the queries
// that want it, wherever they are, 32 (query, head) rows at a time. Each leaves a normalised partial result in a slot of
// its query (merge.cuh):
//
//   partial_o = softmax(scale q k^T) v,   partial_lse = log2 sum exp2(scale_log2 q k^T)      over the kv_block's keys
//
// All of a kv_block's keys lie in the past of all its queries: nothing is masked. Loading a kv_block of 64 KB takes some
// 3000 cycles of an SM's share of the bandwidth, the products of the 80 or so queries of an item more than ten times as
// long: nothing is gained by loading ahead, and GPUs with 99 KB of shared memory have no room for it.
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
struct KvOuterConfig {
  using Product = KeyProduct<Element, Cached, kDim>;
  static constexpr int kThreads = 32 * kPromptWarps;
  static constexpr int kKeys = 128;     // of the largest kv_block
  static constexpr int kStepKeys = 32;  // whose scores are in registers at a time
  struct Storage {
    alignas(kTileAlignment) char k[kKeys * Product::kRowBytes];
    alignas(kTileAlignment) char v[kKeys * Product::kRowBytes];
    float k_scale[Product::kIsQuantized ? kKeys : 4];
    float v_scale[Product::kIsQuantized ? kKeys : 4];
    alignas(kTileAlignment) char q[kPromptWarps][WarpQueries<Product>::kBytes];
    Visit visits[kMostVisits];
  };
  static_assert(sizeof(Storage) <= kSharedBytes);
};

/// Starts loading k and v of an item's kv_block, and has its visits in shared memory. Returns how many they are.
template <class Config>
__device__ __forceinline__ std::int32_t load_item(const PromptParams& p, typename Config::Storage& storage,
                                                  const KvOuterItem& item, int thread) {
  constexpr int kStep = 64, kRowBytes = Config::Product::kRowBytes, kThreads = Config::kThreads;
  for (int i = thread; i < item.count; i += kThreads) storage.visits[i] = p.work.visits[item.begin + i];
  const SequenceView view = p.batch.sequence(item.sequence);
  const SequenceKeys keys{&p.batch, item.sequence, view.k_row, view.seqlen_k};
  const AttentionTensors& t = p.tensors;
  const std::int32_t head = p.work.head;
  for (int at = 0; at < p.batch.block_size; at += kStep) {
    const std::int32_t first = item.block * p.batch.block_size + at;
    load_keys<kStep, kRowBytes, kThreads>(keys, t.k, head, first, shared_address(storage.k) + at * kRowBytes, thread);
    load_keys<kStep, kRowBytes, kThreads>(keys, t.v, head, first, shared_address(storage.v) + at * kRowBytes, thread);
    if constexpr (Config::Product::kIsQuantized) {
      if (t.k_scale.is_per_token()) {
        load_scales<kStep, kThreads>(keys, t.k_scale, head, first, shared_address(storage.k_scale + at), thread);
      }
      if (t.v_scale.is_per_token()) {
        load_scales<kStep, kThreads>(keys, t.v_scale, head, first, shared_address(storage.v_scale + at), thread);
      }
    }
  }
  __syncthreads();
  return item.count;
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 2) kv_outer_kernel(const __grid_constant__ PromptBatches batches) {
  using Product = typename Config::Product;
  constexpr int kRows = 2 * kWarpTiles;  // of a thread
  extern __shared__ __align__(kTileAlignment) char shared[];
  auto& storage = *reinterpret_cast<typename Config::Storage*>(shared);
  const PromptParams& p = batches.of[blockIdx.y];
  const AttentionTensors& t = p.tensors;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  wait_for_earlier_kernels();
  const std::int32_t num_items = *p.work.num_items, log2_group = p.log2_group_size, group = 1 << log2_group;
  const std::int32_t queries = 16 * kWarpTiles >> log2_group;  // of a warp's rows
  const KeysInShared keys{shared_address(storage.k), shared_address(storage.v),
                          t.k_scale.is_per_token() ? storage.k_scale : nullptr,
                          t.v_scale.is_per_token() ? storage.v_scale : nullptr};
  const WarpQueries<Product> q(storage.q[warp], lane);
  const float k_scale = Product::kIsQuantized && t.k_scale.is_for_all() ? *t.k_scale.data : 1;
  const float v_scale = t.v_scale.is_for_all() ? *t.v_scale.data : 1;
  for (std::int32_t number = blockIdx.x; number < num_items; number += gridDim.x) {
    const std::int32_t count = load_item<Config>(p, storage, p.work.items[number], thread);
    // Row `lane` of a warp's queries from `first` on.
    const auto row_from = [&](std::int32_t first) {
      const Visit& visit = storage.visits[min(first + (lane >> log2_group), count - 1)];
      const std::int32_t head = (p.work.head << log2_group) + (lane & (group - 1));
      return WarpQueries<Product>::row_of(t.q, visit.q_row, head);
    };
    std::int32_t first = warp * queries;
    if constexpr (q.kIsAsync) {
      if (first < count) q.start(row_from(first));
    }
    async_commit();
    async_wait<0>();
    __syncthreads();
    for (; first < count; first += kPromptWarps * queries) {
      float scale_log2[kRows];
#pragma unroll
      for (float& scale : scale_log2) scale = t.scale_log2 * k_scale;
      if constexpr (q.kIsAsync) {
        async_wait<0>();
      } else {
        q.put(row_from(first), scale_log2);
      }
      __syncwarp();
      WarpAttention<Product, kWarpTiles> attention;
      constexpr int kEverything[kRows] = {};
#pragma unroll 1
      for (int key = 0; key < p.batch.block_size; key += Config::kStepKeys) {
        attention.template add<Config::kStepKeys, false>(q, keys, key, kEverything, scale_log2, lane);
      }
      __syncwarp();
      if constexpr (q.kIsAsync) {  // those of the next round come while results of this one are stored
        const std::int32_t next = first + kPromptWarps * queries;
        if (next < count) q.start(row_from(next));
        async_commit();
      }
      attention.finish(v_scale);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int row = i * 8 + lane / 4, at = first + (row >> log2_group);
        if (at >= count) continue;
        const std::int32_t place = storage.visits[at].slot * group + (row & (group - 1));
        PartialRow<Product>::store(attention.o[i / 2], i % 2, attention.inverse(i), p.work.partial_o, place, lane);
        if (lane % 4 == 0) p.work.partial_lse[place] = attention.lse_log2(i);
      }
    }
    __syncthreads();
  }
}

}  // namespace openmsa::cuda::sm80::attend
