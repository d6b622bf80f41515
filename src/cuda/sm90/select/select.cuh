// The index branch with selection beside it (eq.: m[i,b,r] = max_j index_q[i,r] . index_k[j], top-k over b).
//
// A persistent block takes a tile of queries with all index heads: two consumer warpgroups of up to 128 (query, head)
// rows each. The producer streams tiles of 128 index keys, which both warpgroups read; scores live in accumulators
// only. A warpgroup reduces its 128 x 128 scores to one maximum per row and kv_block while the other one multiplies,
// and offers it to the row's top-k list, which one thread keeps in registers.
//
//   barrier      arrivals                      waited on by   guards
//   full[i]      producer + bytes of the keys  consumers      keys of stage i have arrived
//   empty[i]     one thread per consumer       producer       both warpgroups are done with stage i
//   named 1, 2   128 threads of a warpgroup    the same       its part of q is in shared memory / no longer read
//
// Per tile of 128 keys and 256 rows (index_dim 128): products 2048 cycles of the tensor cores, maxima 512 cycles of the
// ALU; the kernel is bound by the products.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

#include "cuda/sm90/select/params.h"
#include "cuda/sm90/select/topk_list.cuh"
#include "cuda/sm90/tile/barrier.cuh"
#include "cuda/sm90/tile/load_keys.cuh"

namespace openmsa::cuda::sm90 {

/// kCapacity: length of the lists, at least topk; 0: no selection, block scores to memory.
template <class Element_, int kDim_, int kBlock_, int kCapacity_>
struct SelectConfig {
  using Element = Element_;
  static constexpr int kDim = kDim_;
  static constexpr int kBlock = kBlock_;
  static constexpr int kCapacity = kCapacity_;
  static constexpr bool kStoresScores = kCapacity == 0;

  static constexpr int kKeys = 128;                       // per stage
  static constexpr int kBlocksPerStage = kKeys / kBlock;  // 1 or 2
  static constexpr int kMmaRows = select_mma_rows(kCapacity);
  static constexpr int kRows = kMmaRows * 64;  // (query, head) rows of a warpgroup
  static constexpr int kConsumers = 2;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kStages = 4;

  using Atom = cute::GMMA::Layout_K_SW128_Atom<Element>;
  using LayoutQ = decltype(cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kRows>, cute::Int<kDim>>{}));
  using LayoutK = decltype(cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kKeys>, cute::Int<kDim>>{}));
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Element, Element, float, cute::Shape<cute::_64, cute::Int<kKeys>, cute::_16>,
                                 cute::GMMA::Major::K, cute::GMMA::Major::K>()));

  struct Storage {
    alignas(1024) Element q[kConsumers][kRows * kDim];
    alignas(1024) Element k[kStages][kKeys * kDim];
    std::uint64_t full[kStages], empty[kStages];
  };
};

/// Key stages [begin, end) of one work item: those that hold a kv_block which competes for some query of the tile.
struct StageRange {
  int begin, end;
};

template <class Config>
__device__ __forceinline__ StageRange stage_range(const SelectParams& p, const QueryTile& tile, int split) {
  const int last = tile.position + tile.count - 1;
  int blocks;
  if constexpr (Config::kStoresScores) {
    blocks = last < 0 ? 0 : last / Config::kBlock + 1;
  } else {
    const Candidates candidates(p.rules, last);
    blocks = candidates.end;
  }
  const int stages = (blocks + Config::kBlocksPerStage - 1) / Config::kBlocksPerStage;
  return {static_cast<int>(static_cast<std::int64_t>(stages) * split / p.num_splits),
          static_cast<int>(static_cast<std::int64_t>(stages) * (split + 1) / p.num_splits)};
}

/// Work item -> tile and split: long tiles first, they are at the ends of sequences.
struct WorkItem {
  int tile, split;
};
__device__ __forceinline__ WorkItem work_item(const SelectParams& p, int num_tiles, int work) {
  return {num_tiles - 1 - work / p.num_splits, work % p.num_splits};
}

template <class Config>
__device__ __forceinline__ void produce(const SelectParams& p, const CUtensorMap& map_k,
                                        typename Config::Storage& storage, int num_tiles) {
  const int queries = select_queries_per_tile(p.heads, Config::kCapacity);
  RingPosition<Config::kStages> ring;
  for (int work = blockIdx.x; work < num_tiles * p.num_splits; work += gridDim.x) {
    const WorkItem item = work_item(p, num_tiles, work);
    const QueryTile tile = find_tile(p.batch, p.index, item.tile, queries);
    const StageRange range = stage_range<Config>(p, tile, item.split);
    for (int stage = range.begin; stage < range.end; ++stage) {
      EmptyBarrier::wait(&storage.empty[ring.stage], ring.parity ^ 1);
      load_keys<typename Config::Element, Config::kDim, Config::kKeys>(
          map_k, p.batch, tile.sequence, tile.view, stage * Config::kKeys, {p.key_box_rows, 0}, storage.k[ring.stage],
          &storage.full[ring.stage]);
      ring.advance();
    }
  }
}

/// The (query, head) row that a thread keeps the list of, and the four (or two) rows whose scores it holds.
template <class Config>
struct RowMap {
  int thread, heads, queries;  // queries of this warpgroup

  /// Row i of this thread's accumulators: 64-row product i / 2, upper or lower half i % 2.
  __device__ __forceinline__ int held(int i) const {
    return i / 2 * 64 + thread / 32 * 16 + i % 2 * 8 + thread % 32 / 4;
  }
  __device__ __forceinline__ int owned() const { return held(thread % 4 % (2 * Config::kMmaRows)); }
  __device__ __forceinline__ bool owns() const {
    return thread % 4 < 2 * Config::kMmaRows && owned() / heads < queries;
  }
};

/// Copies the warpgroup's rows of index_q into the swizzled tile; rows past the tile repeat its last query.
template <class Config>
__device__ __forceinline__ void load_queries(const SelectParams& p, const QueryTile& tile, int first, int thread,
                                             typename Config::Element* to) {
  using namespace cute;
  constexpr int kChunks = Config::kDim / 8;  // of 16 bytes
  Tensor smem = make_tensor(make_smem_ptr(to), typename Config::LayoutQ{});
  const auto* q = static_cast<const typename Config::Element*>(p.index_q);
  for (int i = thread; i < Config::kRows * kChunks; i += 128) {
    const int row = i / kChunks, channel = i % kChunks * 8;
    const int query = min(first + row / p.heads, tile.count - 1);
    const auto* from = q + (tile.q_row + query) * p.q_row_stride + row % p.heads * p.q_head_stride + channel;
    *reinterpret_cast<uint4*>(&smem(row, channel)) = *reinterpret_cast<const uint4*>(from);
  }
}

/// Maxima over columns [first, first + kBlock) of row i of the accumulators, up to `limit` (exclusive); NaN where no
/// column counts, so that NaN loses to every number.
template <class Config, class Accumulator>
__device__ __forceinline__ float row_max(const Accumulator& acc, int i, int first, int limit, int lane) {
  using namespace cute;
  constexpr int kGroups = Config::kBlock / 8;
  float top = NAN;
  const int m = i / 2, half = i % 2;
  if (limit >= first + Config::kBlock) {
    float other = acc(make_coord(1, half, first / 8), m, 0);
    top = acc(make_coord(0, half, first / 8), m, 0);
    CUTE_UNROLL
    for (int n = 1; n < kGroups; ++n) {
      top = fmaxf(top, acc(make_coord(0, half, first / 8 + n), m, 0));
      other = fmaxf(other, acc(make_coord(1, half, first / 8 + n), m, 0));
    }
    return fmaxf(top, other);
  }
  CUTE_UNROLL
  for (int n = 0; n < kGroups; ++n) {
    CUTE_UNROLL
    for (int c = 0; c < 2; ++c) {
      const bool visible = first + n * 8 + lane % 4 * 2 + c < limit;
      top = fmaxf(top, visible ? acc(make_coord(c, half, first / 8 + n), m, 0) : NAN);
    }
  }
  return top;
}

/// From the maxima of each lane's own columns to those of whole rows: afterwards lane i of a quad has the one of row i.
template <int kHeld>
__device__ __forceinline__ float exchange_max(const float (&top)[kHeld], int lane) {
  const bool odd = lane & 1, upper = lane & 2;
  float low = odd ? top[1] : top[0], other = odd ? top[0] : top[1];
  low = fmaxf(low, __shfl_xor_sync(~0u, other, 1));
  if constexpr (kHeld == 2) {
    return fmaxf(low, __shfl_xor_sync(~0u, low, 2));
  } else {
    float high = odd ? top[3] : top[2];
    other = odd ? top[2] : top[3];
    high = fmaxf(high, __shfl_xor_sync(~0u, other, 1));
    const float mine = upper ? high : low, theirs = upper ? low : high;
    return fmaxf(mine, __shfl_xor_sync(~0u, theirs, 2));
  }
}

/// What becomes of a row's block scores.
template <class Config>
struct TopkSink {
  TopkList<Config::kCapacity> list;
  Candidates candidates;
  bool owns;

  __device__ __forceinline__ TopkSink(const SelectParams& p, int position, bool owns)
      : candidates(p.rules, position), owns(owns) {
    list.clear();
  }
  __device__ __forceinline__ void take(const SelectParams&, float score, int block) {
    if (owns && block >= candidates.init && block < candidates.end) list.offer(score_key(score), block);
  }
  __device__ __forceinline__ void finish(const SelectParams& p, int row, int head, int split) {
    if (!owns) return;
    if (p.num_splits == 1) {
      std::int32_t* out = p.topk_indices + head * p.topk_strides[0] + row * p.topk_strides[1];
      list.write(candidates, p.rules.topk, out, p.topk_strides[2]);
      return;
    }
    const std::int64_t at =
        ((static_cast<std::int64_t>(row) * p.heads + head) * p.num_splits + split) * Config::kCapacity;
#pragma unroll
    for (int i = 0; i < Config::kCapacity; ++i) {
      p.partial_keys[at + i] = list.keys[i];
      p.partial_blocks[at + i] = list.blocks[i];
    }
  }
};

template <class Config>
struct ScoreSink {
  int visible;  // kv_blocks of the row
  float* out;
  bool owns;

  __device__ __forceinline__ ScoreSink(const SelectParams&, int position, bool owns)
      : visible(position < 0 ? 0 : position / Config::kBlock + 1), out(nullptr), owns(owns) {}
  __device__ __forceinline__ void begin(const SelectParams& p, int row, int head) {
    out = p.block_scores + head * p.score_strides[0] + row * p.score_strides[1];
  }
  __device__ __forceinline__ void take(const SelectParams& p, float score, int block) {
    if (owns && block < visible) out[block * p.score_strides[2]] = score * p.index_scale;
  }
  __device__ __forceinline__ void finish(const SelectParams& p, int, int, int split) {
    if (!owns || split != 0) return;
    for (int block = visible; block < p.score_columns; ++block) out[block * p.score_strides[2]] = -INFINITY;
  }
};

template <class Config>
__device__ __forceinline__ void consume(const SelectParams& p, typename Config::Storage& storage, int num_tiles,
                                        int consumer) {
  using namespace cute;
  using Sink = std::conditional_t<Config::kStoresScores, ScoreSink<Config>, TopkSink<Config>>;
  constexpr int kHeld = 2 * Config::kMmaRows;
  const int thread = threadIdx.x % 128, lane = thread % 32;
  const int queries = Config::kRows / p.heads;  // of this warpgroup
  const RowMap<Config> rows{thread, p.heads, queries};

  typename Config::Mma mma;
  const auto slice = mma.get_thread_slice(thread);
  const Tensor left =
      slice.partition_fragment_A(make_tensor(make_smem_ptr(storage.q[consumer]), typename Config::LayoutQ{}));
  Tensor acc = partition_fragment_C(mma, Shape<Int<Config::kRows>, Int<Config::kKeys>>{});

  RingPosition<Config::kStages> ring;
  for (int work = blockIdx.x; work < num_tiles * p.num_splits; work += gridDim.x) {
    const WorkItem item = work_item(p, num_tiles, work);
    const QueryTile tile = find_tile(p.batch, p.index, item.tile, select_queries_per_tile(p.heads, Config::kCapacity));
    const StageRange range = stage_range<Config>(p, tile, item.split);
    const int first = consumer * queries;  // query of the tile
    load_queries<Config>(p, tile, first, thread, storage.q[consumer]);
    cutlass::arch::fence_view_async_shared();
    cutlass::arch::NamedBarrier::sync(128, 1 + consumer);

    const int query = first + rows.owned() / p.heads, head = rows.owned() % p.heads;
    Sink sink(p, tile.position + query, rows.owns() && query < tile.count);
    if constexpr (Config::kStoresScores) sink.begin(p, tile.q_row + query, head);
    int limit[kHeld];  // keys that each held row sees
    CUTE_UNROLL
    for (int i = 0; i < kHeld; ++i) limit[i] = tile.position + first + rows.held(i) / p.heads + 1;

    for (int stage = range.begin; stage < range.end; ++stage) {
      FullBarrier::wait(&storage.full[ring.stage], ring.parity);
      const Tensor right =
          slice.partition_fragment_B(make_tensor(make_smem_ptr(storage.k[ring.stage]), typename Config::LayoutK{}));
      warpgroup_fence_operand(acc);
      warpgroup_arrive();
      CUTE_UNROLL
      for (int m = 0; m < Config::kMmaRows; ++m) {
        mma.accumulate_ = GMMA::ScaleOut::Zero;
        CUTE_UNROLL
        for (int i = 0; i < size<2>(left); ++i) {
          gemm(mma, left(_, m, i), right(_, 0, i), acc(_, m, 0));
          mma.accumulate_ = GMMA::ScaleOut::One;
        }
        warpgroup_commit_batch();
      }

      float top[Config::kBlocksPerStage][kHeld];
      CUTE_UNROLL
      for (int m = 0; m < Config::kMmaRows; ++m) {  // maxima of the first 64 rows beside the product of the last
        if (m + 1 < Config::kMmaRows) {
          warpgroup_wait<1>();
        } else {
          warpgroup_wait<0>();
          if (thread == 0) EmptyBarrier::arrive(&storage.empty[ring.stage]);
        }
        warpgroup_fence_operand(acc);
        CUTE_UNROLL
        for (int b = 0; b < Config::kBlocksPerStage; ++b) {
          CUTE_UNROLL
          for (int i = 2 * m; i < 2 * m + 2; ++i) {
            top[b][i] = row_max<Config>(acc, i, b * Config::kBlock, limit[i] - stage * Config::kKeys, lane);
          }
        }
      }
      CUTE_UNROLL
      for (int b = 0; b < Config::kBlocksPerStage; ++b) {
        sink.take(p, exchange_max(top[b], lane), stage * Config::kBlocksPerStage + b);
      }
      ring.advance();
    }
    sink.finish(p, tile.q_row + query, head, item.split);
    cutlass::arch::NamedBarrier::sync(128, 1 + consumer);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    select_kernel(const SelectParams p, const __grid_constant__ CUtensorMap map_k) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  if (threadIdx.x == 0) {
    init_ring(storage.full, storage.empty, Config::kConsumers);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();
  cudaGridDependencySynchronize();

  const int num_tiles = p.index.tiles[p.batch.batch + 1];
  // 64512 registers of the block: 24 x 128 for the producer, 240 x 256 for the consumers.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<24>();
    if (threadIdx.x == 0) produce<Config>(p, map_k, storage, num_tiles);
  } else {
    cutlass::arch::warpgroup_reg_alloc<240>();
    consume<Config>(p, storage, num_tiles, threadIdx.x / 128 - 1);
  }
}

/// Merges the lists of the splits of one row, lower keys first.
template <int kCapacity>
__global__ void merge_lists_kernel(const SelectParams p) {
  cudaGridDependencySynchronize();
  const int row = (blockIdx.x * blockDim.x + threadIdx.x) / p.heads;
  const int head = (blockIdx.x * blockDim.x + threadIdx.x) % p.heads;
  if (row >= p.batch.total_q) return;
  const Candidates candidates(p.rules, p.batch.position_of_row(row));
  TopkList<kCapacity> list;
  list.clear();
  const std::int64_t at = (static_cast<std::int64_t>(row) * p.heads + head) * p.num_splits * kCapacity;
  for (int i = 0; i < p.num_splits * kCapacity; ++i) {
    const std::int32_t key = p.partial_keys[at + i];
    if (key != TopkList<kCapacity>::kEmpty) list.offer(key, p.partial_blocks[at + i]);
  }
  std::int32_t* out = p.topk_indices + head * p.topk_strides[0] + row * p.topk_strides[1];
  list.write(candidates, p.rules.topk, out, p.topk_strides[2]);
}

}  // namespace openmsa::cuda::sm90
