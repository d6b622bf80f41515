// Attention of decode: few query tokens per sequence, over their chosen kv_blocks or over all keys.
//
// A CTA takes the heads of one query row and KV head, 16 rows, and a part of its keys. Each of its 4 warps goes through
// chunks of keys of its own, with a ring of its own in shared memory: nobody waits for anybody but at the end, where the
// warps' results are put together. Where keys are cut into several parts, a second kernel combines those:
//
//   o = sum_i 2^(max_i - max) o_i / sum_i 2^(max_i - max) sum_i,   lse = ln 2 (max + log2(sum))
//
// Bound by memory.
#pragma once

#include "cuda/common/find_sequence.cuh"
#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm80/attend/params.h"
#include "cuda/sm80/attend/warp_attention.cuh"
#include "cuda/sm80/heuristics.h"
#include "cuda/sm80/tile/load_keys.cuh"

namespace openmsa::cuda::sm80::attend {

inline constexpr int kMaxTopk = 64;

template <class Element, class Cached, int kDim_>
struct DecodeConfig {
  using Product = KeyProduct<Element, Cached, kDim_>;
  static constexpr int kDim = kDim_;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kChunkKeys = Product::kRowBytes == 256 ? 16 : 32;
  static constexpr int kStages = 3;
  static constexpr int kPartialStride = kDim + 8;  // rows side by side differ in their banks
  struct Chunk {
    alignas(kTileAlignment) char k[kChunkKeys * Product::kRowBytes];
    alignas(kTileAlignment) char v[kChunkKeys * Product::kRowBytes];
    float k_scale[Product::kIsQuantized ? kChunkKeys : 4];
    float v_scale[Product::kIsQuantized ? kChunkKeys : 4];
  };
  /// Results of the warps.
  struct Partial {
    float max[kWarps][16];  // in units of log2
    float sum[kWarps][16];
    alignas(16) float o[kWarps][16][kPartialStride];
  };
  union Storage {
    Chunk chunks[kWarps][kStages];
    Partial partial;  // when all chunks have been read
  };
  static_assert(sizeof(Storage) <= kSharedBytes);
};

/// The valid prefix of a row of topk_indices, in the lanes of every warp.
struct Choice {
  std::int32_t blocks[kMaxTopk / 32];  // of this lane: slots lane, 32 + lane
  std::int32_t count;

  __device__ __forceinline__ Choice(const DecodeParams& p, std::int32_t head, std::int32_t row, int lane) : count(0) {
    const std::int32_t* const from = p.topk_indices.row(head, row);
    bool is_open = true;
#pragma unroll
    for (int i = 0; i < kMaxTopk / 32; ++i) {
      const int slot = i * 32 + lane;
      blocks[i] = is_open && slot < p.topk ? from[slot * p.topk_indices.strides[2]] : -1;
      const int invalid = __ffs(~__ballot_sync(kFullWarp, blocks[i] >= 0)) - 1;
      count += !is_open ? 0 : (invalid < 0 ? 32 : invalid);
      is_open &= invalid < 0;
    }
  }
  /// All lanes ask together, each for a slot of its own.
  __device__ __forceinline__ std::int32_t block(std::int32_t slot) const {
    const std::int32_t low = __shfl_sync(kFullWarp, blocks[0], slot & 31);
    const std::int32_t high = __shfl_sync(kFullWarp, blocks[1], slot & 31);
    return slot < 32 ? low : high;
  }
};

/// Groups of keys from `first` on, of which lane `from` + i knows the page of group i.
struct PagedGroups {
  const SequenceKeys& sequence;
  const KeyTensor& keys;
  std::int32_t head, first, pages, from;

  __device__ __forceinline__ const char* row(int group) const {
    return sequence.row(keys, head, first + group * kGroupKeys, __shfl_sync(kFullWarp, pages, from + group));
  }
};

/// Four channels of o and, with the first ones, lse.
template <class Element>
__device__ __forceinline__ void write_output(const DecodeParams& p, std::int64_t row, std::int64_t query_head,
                                             int vector, float max, float sum, const float4& o) {
  const OutputRows& out = p.tensors.out;
  const float inverse = sum == 0 ? 0 : 1 / sum;
  auto* const to = static_cast<Element*>(out.o) + row * out.o_strides[0] + query_head * out.o_strides[1];
  reinterpret_cast<uint2*>(to)[vector] =
      make_uint2(pack<Element>(o.x * inverse, o.y * inverse), pack<Element>(o.z * inverse, o.w * inverse));
  if (vector == 0 && out.lse != nullptr) {
    out.lse[row * out.lse_strides[0] + query_head * out.lse_strides[1]] =
        sum == 0 ? -INFINITY : (max + log2f(sum)) * kLn2;
  }
}

/// Puts the warps' results together: this CTA's part, or o and lse where it is the only one.
template <class Config>
__device__ __forceinline__ void write_part(const DecodeParams& p, const typename Config::Partial& partial,
                                           std::int32_t row, std::int32_t head, std::int32_t split) {
  using Element = typename Config::Product::Element;
  constexpr int kVectors = Config::kDim / 4;
  for (int i = threadIdx.x; i < kVectors << p.log2_group_size; i += Config::kThreads) {
    const int at = i / kVectors, vector = i % kVectors;
    float top = -INFINITY, total = 0;
#pragma unroll
    for (int w = 0; w < Config::kWarps; ++w) top = fmaxf(top, partial.max[w][at]);
    const float shift = finite_shift(top);
    float4 o = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < Config::kWarps; ++w) {
      const float weight = exp2_approx(partial.max[w][at] - shift);
      const float4 other = *reinterpret_cast<const float4*>(&partial.o[w][at][vector * 4]);
      total += weight * partial.sum[w][at];
      o.x += weight * other.x, o.y += weight * other.y, o.z += weight * other.z, o.w += weight * other.w;
    }
    if (p.splits > 1) {
      const std::int64_t place = p.part(row, head, split) * 16 + at;
      reinterpret_cast<float4*>(p.partial_o)[place * kVectors + vector] = o;
      if (vector == 0) p.partial_weight[place] = make_float2(top, total);
    } else {
      write_output<Element>(p, row, (head << p.log2_group_size) + at, vector, top, total, o);
    }
  }
}

/// CTAs [query row][KV head][part].
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 2) decode_kernel(const __grid_constant__ DecodeParams p) {
  using Product = typename Config::Product;
  constexpr int kChunkKeys = Config::kChunkKeys, kRowBytes = Product::kRowBytes;
  extern __shared__ __align__(kTileAlignment) char shared[];
  auto& storage = *reinterpret_cast<typename Config::Storage*>(shared);
  const AttentionTensors& t = p.tensors;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto split = static_cast<std::int32_t>(blockIdx.x) % p.splits;
  const std::int32_t pair = static_cast<std::int32_t>(blockIdx.x) / p.splits;
  const std::int32_t head = pair % p.heads, row = pair / p.heads;
  wait_for_earlier_kernels();

  const IntVector offsets = p.batch.cu_seqlens_q;
  const std::int32_t sequence =
      offsets.data == nullptr ? 0 : find_sequence_together(offsets, p.batch.batch + 1, row, lane);
  const SequenceView view = p.batch.sequence(sequence);
  if (!p.served.is_open() && (sequence == p.batch.batch || !p.served.has(view.seqlen_q))) return;
  const std::int32_t position = sequence == p.batch.batch ? -1 : view.seqlen_k - view.seqlen_q + row - view.q_row;
  const SequenceKeys keys{&p.batch, sequence, view.k_row, max(position + 1, 0)};

  // Chunks of all warps, in the order of keys or of the choice.
  const bool is_dense = p.topk == 0;
  const std::int32_t log2_block = log2_of(p.batch.block_size), log2_chunks = log2_block - log2_of(kChunkKeys);
  std::int32_t chunks = (keys.end + kChunkKeys - 1) / kChunkKeys;
  const Choice choice(p, head, row, lane);
  if (!is_dense) chunks = choice.count << log2_chunks;
  const auto begin = static_cast<std::int32_t>(std::int64_t{chunks} * split / p.splits) + warp;
  const auto end = static_cast<std::int32_t>(std::int64_t{chunks} * (split + 1) / p.splits);
  const auto first_key = [&](std::int32_t chunk) {
    if (is_dense) return chunk * kChunkKeys;
    const std::int32_t in_block = chunk & ((1 << log2_chunks) - 1);
    return (choice.block(chunk >> log2_chunks) << log2_block) + in_block * kChunkKeys;
  };
  // Pages of a warp's next 32 groups of keys, one in each lane: its loop would wait for them one by one.
  constexpr int kGroups = kChunkKeys / kGroupKeys, kAhead = 32 / kGroups;
  std::int32_t pages = 0;
  const auto load = [&](std::int32_t chunk, int stage) {
    if (chunk < end) {
      typename Config::Chunk& to = storage.chunks[warp][stage];
      const int number = (chunk - begin) / Config::kWarps % kAhead;
      if (number == 0) {
        const std::int32_t mine = min(chunk + lane / kGroups * Config::kWarps, end - 1);
        pages = keys.page(first_key(mine) + lane % kGroups * kGroupKeys);
      }
      const std::int32_t first = first_key(chunk);
      const PagedGroups k{keys, t.k, head, first, pages, number * kGroups};
      const PagedGroups v{keys, t.v, head, first, pages, number * kGroups};
      load_groups<kChunkKeys, kRowBytes, 32>(k, t.k.token_stride, keys.end, first, shared_address(to.k), lane);
      load_groups<kChunkKeys, kRowBytes, 32>(v, t.v.token_stride, keys.end, first, shared_address(to.v), lane);
      if constexpr (Product::kIsQuantized) {
        if (t.k_scale.is_per_token()) {
          load_scales<kChunkKeys, 32>(keys, t.k_scale, head, first, shared_address(to.k_scale), lane);
        }
        if (t.v_scale.is_per_token()) {
          load_scales<kChunkKeys, 32>(keys, t.v_scale, head, first, shared_address(to.v_scale), lane);
        }
      }
    }
    async_commit();
  };
#pragma unroll
  for (int i = 0; i < Config::kStages - 1; ++i) load(begin + i * Config::kWarps, i);

  RegisterRows<Product, 1> q;
  float scale_log2[2];
  const float k_scale = t.k_scale.is_for_all() ? *t.k_scale.data : 1;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int group = 1 << p.log2_group_size;
    const std::int64_t query_head = (head << p.log2_group_size) + min(i * 8 + lane / 4, group - 1);
    const auto* const from =
        static_cast<const typename Product::Element*>(t.q.data) + row * t.q.strides[0] + query_head * t.q.strides[1];
    scale_log2[i] = t.scale_log2 * k_scale * Product::load_query(from, i, q.tiles[0], lane);
  }
  WarpAttention<Product, 1> attention;
  int stage = 0;
#pragma unroll 1
  for (std::int32_t chunk = begin; chunk < end; chunk += Config::kWarps) {
    async_wait<Config::kStages - 2>();
    __syncwarp();
    const int free_stage = stage == 0 ? Config::kStages - 1 : stage - 1;
    load(chunk + (Config::kStages - 1) * Config::kWarps, free_stage);
    const typename Config::Chunk& now = storage.chunks[warp][stage];
    const KeysInShared in_shared{shared_address(now.k), shared_address(now.v),
                                 t.k_scale.is_per_token() ? now.k_scale : nullptr,
                                 t.v_scale.is_per_token() ? now.v_scale : nullptr};
    const int seen = keys.end - first_key(chunk), limit[2] = {seen, seen};
    if (seen >= kChunkKeys) {
      attention.template add<kChunkKeys, false>(q, in_shared, 0, limit, scale_log2, lane);
    } else {
      attention.template add<kChunkKeys, true>(q, in_shared, 0, limit, scale_log2, lane);
    }
    stage = stage + 1 == Config::kStages ? 0 : stage + 1;
  }
  async_wait<0>();
  attention.finish(t.v_scale.is_for_all() ? *t.v_scale.data : 1);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = i * 8 + lane / 4;
    Product::store_row(attention.o[0], i, storage.partial.o[warp][at], lane);
    if (lane % 4 == 0) {
      storage.partial.max[warp][at] = attention.max[i];
      storage.partial.sum[warp][at] = attention.sum[i];
    }
  }
  __syncthreads();
  write_part<Config>(p, storage.partial, row, head, split);
}

inline constexpr int kCombineWarps = 4;

/// A warp for each (query row, query head).
template <class Element, int kDim>
__global__ void __launch_bounds__(kCombineWarps * 32) combine_kernel(const __grid_constant__ DecodeParams p) {
  constexpr int kVectors = kDim / 4;
  wait_for_earlier_kernels();
  const int lane = threadIdx.x % 32;
  const std::int64_t number = std::int64_t{blockIdx.x} * kCombineWarps + threadIdx.x / 32;
  const std::int32_t query_heads = p.heads << p.log2_group_size;
  if (number >= std::int64_t{p.batch.total_q} * query_heads || lane >= kVectors) return;
  const auto row = static_cast<std::int32_t>(number / query_heads);
  const auto query_head = static_cast<std::int32_t>(number % query_heads);
  const std::int32_t head = query_head >> p.log2_group_size, at = query_head - (head << p.log2_group_size);
  const std::int64_t first = p.part(row, head, 0) * 16 + at;
  float top = -INFINITY, total = 0;
  for (std::int32_t split = 0; split < p.splits; ++split) top = fmaxf(top, p.partial_weight[first + split * 16].x);
  const float shift = finite_shift(top);
  float4 o = make_float4(0, 0, 0, 0);
#pragma unroll 4
  for (std::int32_t split = 0; split < p.splits; ++split) {
    const std::int64_t place = first + split * 16;
    const float2 max_and_sum = p.partial_weight[place];
    const float4 other = reinterpret_cast<const float4*>(p.partial_o)[place * kVectors + lane];
    const float weight = exp2_approx(max_and_sum.x - shift);
    total += weight * max_and_sum.y;
    o.x += weight * other.x, o.y += weight * other.y, o.z += weight * other.z, o.w += weight * other.w;
  }
  write_output<Element>(p, row, query_head, lane, top, total, o);
}

}  // namespace openmsa::cuda::sm80::attend
