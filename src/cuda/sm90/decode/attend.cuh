// Attention of a decode step over the chosen kv_blocks.
//
// A cluster of blocks takes a few query rows of one sequence and one KV head. Each of its blocks chooses the kv_blocks
// from the candidates of the index branch (or reads topk_indices), unites those of all queries, and takes every S-th
// piece of 64 keys of the union. One warp loads k and v of a piece; the others hold the heads of one query each, and
// one of kKeySlices slices of the piece's keys, with a running softmax of their own (warp_attention.cuh). At the end
// the partial results are sent through the shared memory of the cluster, where every block combines some of the
// channels (combine.cuh).
//
//   barrier     arrivals                         waited on by   guards
//   full[i]     producer + bytes of k and v      consumers      stage i has arrived
//               (+ 32 lanes per kind of scale)
//   empty[i]    one lane of each consumer        producer       all consumers are done with stage i
//   block       all threads                      the same       chosen kv_blocks and their union are complete
//   received    this block + bytes from all      all threads    partial results of the cluster have arrived
//   cluster     all threads of the cluster       the same       all blocks run; between parts, all are done
//
// Bound by memory and, for a single sequence, by the chain lists -> kv_blocks -> pages -> keys of dependent loads.
#pragma once

#include <cooperative_groups.h>
#include <cutlass/arch/barrier.h>

#include <cute/arch/cluster_sm90.hpp>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/sm90/decode/cached_keys.cuh"
#include "cuda/sm90/decode/combine.cuh"
#include "cuda/sm90/decode/page_loads.cuh"
#include "cuda/sm90/decode/query_union.cuh"
#include "cuda/sm90/decode/warp_attention.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace openmsa::cuda::sm90::decode {

/// A warp's rows are the heads of one of kQueries_ queries, so that queries see nothing of each other's keys.
template <class Element_, class Cached_, int kDim_, int kQueries_, int kKeySlices_>
struct AttendConfig {
  using Element = Element_;
  using Cached = Cached_;
  static constexpr int kDim = kDim_;
  static constexpr int kQueries = kQueries_;
  static constexpr int kKeySlices = kKeySlices_;
  static constexpr bool kIsQuantized = sizeof(Cached) == 1;

  static constexpr int kRows = 16 * kQueries;
  static constexpr int kSliceKeys = kPieceKeys / kKeySlices;
  static constexpr int kChunkKeys = kSliceKeys < 32 ? kSliceKeys : 32;  // whose scores fit in registers
  static constexpr int kConsumers = kQueries * kKeySlices;              // warps
  static constexpr int kThreads = 32 * (kConsumers + 1);
  // A quarter of an SM holds two warps of 160 registers beside two of the index branch's 96, or three of 168.
  static constexpr int kMaxRegisters = kQueries == 1 ? 160 : 168;
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Cached));
  static constexpr int kStages = 3;
  static constexpr int kPartialStride = kDim + 8;  // four rows side by side differ in their banks
  using Keys = CachedKeys<Element, Cached, kPieceKeys, kDim>;
  using Tile = typename Keys::Tile;

  struct Stage {
    alignas(1024) char k[kPieceKeys * kRowBytes];
    alignas(1024) char v[kPieceKeys * kRowBytes];
  };
  static constexpr int kVectors = kDim / 4;
  /// Of all blocks of a cluster, where each has as many as the first.
  static constexpr int kMaxSharedVectors = kQueries == 1 ? kVectors : kVectors + kPortableClusterCtas - 1;
  /// Of this block's warps.
  struct Partial {
    float max[kKeySlices][kRows];  // base 2
    float sum[kKeySlices][kRows];
    alignas(16) float o[kKeySlices][kRows][kPartialStride];
  };
  /// From all blocks of the cluster, for the channels that this one combines.
  struct Received {
    float2 weight[kMaxClusterCtas][kRows];  // max, sum
    float4 o[kRows * kMaxSharedVectors];    // [blocks][kRows][vectors of a block]
    std::uint64_t full;
  };
  using Scratch = ChoiceScratch<kQueries>;
  struct Storage {
    union {
      Scratch scratch;  // before the first stage is loaded
      Stage stages[kStages];
      Partial partial;  // when the last stage has been read
    };
    float k_scale[kStages][kPieceKeys];
    float v_scale[kStages][kPieceKeys];
    Chosen<kQueries> chosen;
    QueryUnion<kQueries> united;  // of several queries
    Received received;
    std::uint64_t full[kStages], empty[kStages];
  };
};

/// The pieces of 64 keys of the union, of which this block takes every `step`-th from `begin` on.
struct Pieces {
  std::int32_t begin, end, step;
  std::int32_t shift;  // 2^shift pieces are a kv_block
};

template <class Config>
__device__ __forceinline__ std::int32_t piece_key(const typename Config::Storage& storage, const Pieces& pieces,
                                                  std::int32_t piece) {
  const std::int32_t within = piece & ((1 << pieces.shift) - 1);
  const std::int32_t* const blocks = Config::kQueries == 1 ? storage.chosen.blocks[0] : storage.united.blocks;
  return ((blocks[piece >> pieces.shift] << pieces.shift) + within) * kPieceKeys;
}

template <class Config>
__device__ __forceinline__ void produce_pieces(const AttendParams& p, const CUtensorMap& map_k,
                                               const CUtensorMap& map_v, typename Config::Storage& storage,
                                               const QueryPart& part, const Pieces& pieces, std::int32_t head,
                                               RingPosition<Config::kStages>& ring, int lane) {
  using Tile = typename Config::Tile;
  const BatchView& batch = p.select.batch;
  const int log2_boxes = log2_of(kPieceKeys) - log2_of(p.key_box_rows), boxes = 1 << log2_boxes;
  const int ahead = 32 >> log2_boxes;  // pieces whose pages are looked up at once
  for (std::int32_t first = pieces.begin; first < pieces.end; first += ahead * pieces.step) {
    const std::int32_t mine = first + (lane >> log2_boxes) * pieces.step;
    std::int32_t page_ahead = 0;
    if (batch.page_size != 0 && mine < pieces.end) {
      const std::int32_t key = piece_key<Config>(storage, pieces, mine) + (lane & (boxes - 1)) * p.key_box_rows;
      if (key < part.view.seqlen_k) page_ahead = batch.page(part.sequence, key >> log2_of(batch.page_size));
    }
    for (int i = 0; i < ahead && first + i * pieces.step < pieces.end; ++i) {
      const std::int32_t key = piece_key<Config>(storage, pieces, first + i * pieces.step);
      const std::int32_t page = __shfl_sync(kFullWarp, page_ahead, (i << log2_boxes) + min(lane, boxes - 1));
      const std::int32_t used = min(kPieceKeys, part.view.seqlen_k - key);
      if (used <= 0) continue;
      const int count = batch.page_size == 0 ? 1 : (used + p.key_box_rows - 1) >> log2_of(p.key_box_rows);
      const std::int32_t token = key + lane * p.key_box_rows;
      const KeyBox box{lane < count, batch.page_size == 0 ? part.view.k_row + key : token & (batch.page_size - 1),
                       page};
      std::uint64_t* const full = &storage.full[ring.stage];
      EmptyBarrier::wait(&storage.empty[ring.stage], ring.parity ^ 1);
      if (lane == 0) FullBarrier::arrive_and_expect_tx(full, 2 * count * p.key_box_rows * Config::kRowBytes);
      __syncwarp();
      if (box.exists) {
        const int to = lane * p.key_box_rows * Tile::kPanelBytes;
        load_box<Tile, typename Config::Cached>(map_k, full, storage.stages[ring.stage].k + to, head, box);
        load_box<Tile, typename Config::Cached>(map_v, full, storage.stages[ring.stage].v + to, head, box);
      }
      if constexpr (Config::kIsQuantized) {
        if (p.k_scale.is_per_token()) {
          load_box_scales<kPieceKeys>(batch, part.view, p.k_scale, head, box, key, p.key_box_rows,
                                      storage.k_scale[ring.stage], full, lane);
        }
        if (p.v_scale.is_per_token()) {
          load_box_scales<kPieceKeys>(batch, part.view, p.v_scale, head, box, key, p.key_box_rows,
                                      storage.v_scale[ring.stage], full, lane);
        }
      }
      ring.advance();
    }
  }
}

template <class Config>
__device__ __forceinline__ void consume_pieces(const AttendParams& p, typename Config::Storage& storage,
                                               const QueryPart& part, const Pieces& pieces, std::int32_t head,
                                               RingPosition<Config::kStages>& ring, WarpAttention<Config>& attention,
                                               int warp, int lane) {
  const int query = warp / Config::kKeySlices, slice_key = warp % Config::kKeySlices * Config::kSliceKeys;
  std::uint32_t q[Config::kDim / 16][4];
  load_query<Config>(p, part.row + min(query, part.count - 1), head, lane, q);
  float scale_log2 = p.scale_log2;
  if (Config::kIsQuantized && p.k_scale.data != nullptr && !p.k_scale.is_per_token()) scale_log2 *= *p.k_scale.data;

  for (std::int32_t piece = pieces.begin; piece < pieces.end; piece += pieces.step) {
    const std::int32_t key = piece_key<Config>(storage, pieces, piece);
    if (key >= part.view.seqlen_k) continue;
    const bool is_member = Config::kQueries == 1 || (storage.united.members[piece >> pieces.shift] >> query & 1) != 0;
    const int end = is_member ? part.position + query + 1 - key : 0;
    FullBarrier::wait(&storage.full[ring.stage], ring.parity);
#pragma unroll 1
    for (int chunk = slice_key; chunk < min(end, slice_key + Config::kSliceKeys); chunk += Config::kChunkKeys) {
      attention.add(storage, ring.stage, chunk, q, end, p, scale_log2, lane);
    }
    __syncwarp();
    if (lane == 0) EmptyBarrier::arrive(&storage.empty[ring.stage]);
    ring.advance();
  }
}

/// Chosen kv_blocks of the part's queries, from topk_indices: their valid prefix.
template <int kWarps, int kQueries>
__device__ __forceinline__ void read_choice(const SelectParams& p, const QueryPart& part, std::int32_t head,
                                            Chosen<kQueries>& chosen, int warp, int lane) {
  for (int query = warp; query < part.count; query += kWarps) {
    const std::int32_t* const from = p.topk_indices.row(head, part.row + query);
    int count = 0;
    for (int first = 0; first < p.rules.topk; first += 32) {
      const std::int32_t block = first + lane < p.rules.topk ? from[(first + lane) * p.topk_indices.strides[2]] : -1;
      const int valid = __ffs(~__ballot_sync(kFullWarp, block >= 0)) - 1;
      const int taken = valid < 0 ? 32 : valid;
      if (lane < taken) chosen.blocks[query][first + lane] = block;
      count += taken;
      if (taken < 32) break;
    }
    if (lane == 0) chosen.counts[query] = count;
  }
  __syncthreads();
}

/// topk_indices of the part, where they are wanted, by one warp.
template <class Config>
__device__ __forceinline__ void store_part(const SelectParams& p, const typename Config::Storage& storage,
                                           const QueryPart& part, std::int32_t head, int lane) {
  if (p.lists.ranked == nullptr || p.topk_indices.data == nullptr) return;
  for (int query = 0; query < part.count; ++query) {
    std::int32_t* const to = p.topk_indices.row(head, part.row + query);
    store_choice(storage.chosen.blocks[query], storage.chosen.counts[query], p.rules.topk, to,
                 p.topk_indices.strides[2], lane);
  }
}

/// Blocks [cluster of rows][KV head][block of the cluster].
template <class Config>
__global__ void __maxnreg__(Config::kMaxRegisters)
    attend_kernel(const __grid_constant__ AttendParams p, const __grid_constant__ CUtensorMap map_k,
                  const __grid_constant__ CUtensorMap map_v) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  const auto cluster = cooperative_groups::this_cluster();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    cute::prefetch_tma_descriptor(&map_k);
    cute::prefetch_tma_descriptor(&map_v);
    const int scales = (p.k_scale.is_per_token() ? 32 : 0) + (p.v_scale.is_per_token() ? 32 : 0);
    init_ring(storage.full, storage.empty, Config::kConsumers, 1 + scales);
    FullBarrier::init(&storage.received.full, 1);
    cutlass::arch::fence_barrier_init();
  }
  if (threadIdx.x < Config::kQueries) storage.chosen.gathered[threadIdx.x] = 0;
  __syncthreads();

  const BatchView& batch = p.select.batch;
  const auto rank = static_cast<std::int32_t>(cluster.block_rank());
  const auto number = static_cast<std::int32_t>(blockIdx.x / cluster.num_blocks());
  const std::int32_t head = number % p.select.heads;
  const std::int32_t first = number / p.select.heads * p.cluster_queries;
  const std::int32_t end = min(first + p.cluster_queries, batch.total_q);
  cute::cluster_arrive_relaxed();  // the others' memory must not be written before they run
  constexpr int kWarps = Config::kConsumers + 1;
  const bool is_layer = p.select.lists.ranked != nullptr;
  if (!is_layer) wait_for_earlier_kernels();
  const ChannelShare share(Config::kVectors, static_cast<int>(cluster.num_blocks()));
  RingPosition<Config::kStages> ring;
  std::uint32_t parity = 0;                                 // of received
  for (std::int32_t row = first; row < end; parity ^= 1) {  // sequence by sequence: mostly one
    const QueryPart part = find_part(p.select, row, end, lane);
    if (is_layer) {
      const ChoiceTeam team(part.count, kWarps, warp);
      const ChoiceRow choice = choice_row(p.select, part, min(team.row, part.count - 1), head);
      // Only now: before it wrote candidates the index branch has waited for those who wrote the lengths.
      if (row == first) wait_for_earlier_kernels();
      choose_blocks(storage.chosen, storage.scratch, part.count, team, choice, lane);
    } else {
      read_choice<kWarps>(p.select, part, head, storage.chosen, warp, lane);
    }
    if (row == first) let_next_kernel_start();
    cutlass::arch::fence_view_async_shared();  // stages are loaded where the scratch memory was
    if constexpr (Config::kQueries > 1) {
      unite<Config::kThreads>(storage.chosen, part.count, p.select.rules.topk, storage.united, threadIdx.x);
    } else {
      __syncthreads();
    }
    const std::int32_t shift = batch.block_size == kPieceKeys ? 0 : 1;
    const std::int32_t count = Config::kQueries == 1 ? storage.chosen.counts[0] : storage.united.count;
    const Pieces pieces{rank, count << shift, static_cast<std::int32_t>(cluster.num_blocks()), shift};
    WarpAttention<Config> attention;  // of a consumer
    if (warp == Config::kConsumers) {
      produce_pieces<Config>(p, map_k, map_v, storage, part, pieces, head, ring, lane);
      if (rank == 0) store_part<Config>(p.select, storage, part, head, lane);
    } else {
      consume_pieces<Config>(p, storage, part, pieces, head, ring, attention, warp, lane);
    }
    __syncthreads();
    if (warp != Config::kConsumers) {
      const bool scaled = Config::kIsQuantized && p.v_scale.data != nullptr && !p.v_scale.is_per_token();
      attention.store(storage.partial, warp % Config::kKeySlices, warp / Config::kKeySlices * 16,
                      scaled ? *p.v_scale.data : 1, lane);
    }
    __syncthreads();
    if (row == first) cute::cluster_wait();
    if (threadIdx.x == 0) expect_partials<Config>(storage.received, share, part.count * 16);
    send_partial<Config>(storage.partial, storage.received, share, part.count * 16);
    await_partials<Config>(storage.received, parity);
    combine_cluster<Config>(p, storage.received, share, part, head);
    row += part.count;
    if (row < end) {  // copies and results of the next part go where those of this one are
      cutlass::arch::fence_view_async_shared();
      cluster.sync();
    }
  }
}

}  // namespace openmsa::cuda::sm90::decode
