// The index branch with selection beside it (eq.: m[i,b,r] = max_j index_q[i,r] . index_k[j], top-k over b).
//
// A persistent CTA takes a tile of queries with all index heads: two consumer warpgroups of up to 128 (query, head)
// rows each. The producer streams tiles of 128 index keys, which both warpgroups read; scores live in accumulators
// only. A warpgroup reduces its 128 x 128 scores to one maximum per row and kv_block while the other one multiplies,
// and offers it to the row's top-k list, which one thread keeps in registers.
//
// e4m3 keys: queries are rounded to e4m3 as they are loaded, each row by 448 over its largest magnitude. That factor is
// the same for all keys and no matter for their order, and so is a scale of all keys; scales per token multiply scores.
//
//   barrier      arrivals                      waited on by   guards
//   full[i]      producer + bytes of the keys  consumers      keys of stage i have arrived
//                (+ 32 lanes where keys have scales)
//   empty[i]     one lane of each warp         producer       both warpgroups are done with stage i
//   kWarpgroup   128 threads of a warpgroup    the same       its part of q is in shared memory / no longer read
//
// Per tile of 128 keys and 256 rows (index_dim 128): products 2048 cycles of the tensor cores, 1024 in e4m3; maxima 256
// cycles of the ALU; scales per token 256 cycles of the FMA units. Bound by the products; in e4m3 by the instructions
// around them, of which a warp issues one in five cycles.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm90/prefill/select/epilogue.cuh"
#include "cuda/sm90/prefill/select/maxima.cuh"
#include "cuda/sm90/prefill/select/params.h"
#include "cuda/sm90/tile/index_queries.cuh"
#include "cuda/sm90/tile/load_keys.cuh"
#include "cuda/sm90/tile/load_scales.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace openmsa::cuda::sm90::prefill {

/// Named barriers of the table above.
enum class SelectBarrier {
  kWarpgroup = 1,  // and 2: of each warpgroup
};

/// Query_: element type of index_q in memory; Key_: of the keys and of the product.
/// kCapacity: length of the lists, at least topk; 0: no selection, block scores to memory.
template <class Query_, class Key_, int kDim_, int kBlock_, int kCapacity_>
struct SelectConfig {
  using Query = Query_;
  using Key = Key_;
  static constexpr bool kIsQuantized = sizeof(Key) == 1;
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
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Key));
  static constexpr int kStages = (128 << 10) / (kKeys * kRowBytes) > 8 ? 8 : (128 << 10) / (kKeys * kRowBytes);

  using Atom =
      std::conditional_t<(kRowBytes >= 128), cute::GMMA::Layout_K_SW128_Atom<Key>, cute::GMMA::Layout_K_SW64_Atom<Key>>;
  using LayoutQ = decltype(cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kRows>, cute::Int<kDim>>{}));
  using LayoutK = decltype(cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kKeys>, cute::Int<kDim>>{}));
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Key, Key, float, cute::Shape<cute::_64, cute::Int<kKeys>, cute::_32>,
                                 cute::GMMA::Major::K, cute::GMMA::Major::K>()));

  struct Storage {
    alignas(1024) Key q[kConsumers][kRows * kDim];
    alignas(1024) Key k[kStages][kKeys * kDim];
    float q_scale[kConsumers][kRows];  // rounded row -> row
    alignas(16) float k_scale[kStages][kKeys];
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
                                        typename Config::Storage& storage, int num_tiles, int lane) {
  const int queries = select_queries_per_tile(p.heads, Config::kCapacity);
  PipelineState<Config::kStages> ring;
  for (int work = blockIdx.x; work < num_tiles * p.num_splits; work += gridDim.x) {
    const WorkItem item = work_item(p, num_tiles, work);
    const QueryTile tile = find_tile(p.batch, p.index, item.tile, queries);
    const StageRange range = stage_range<Config>(p, tile, item.split);
    for (int stage = range.begin; stage < range.end; ++stage) {
      EmptyBarrier::wait(&storage.empty[ring.stage], ring.phase ^ 1);
      std::uint64_t* const full = &storage.full[ring.stage];
      const int first = stage * Config::kKeys;
      if (lane == 0) {
        load_keys<typename Config::Key, Config::kDim, Config::kKeys>(map_k, p.batch, tile.sequence, tile.view, first,
                                                                     {p.key_box_rows, 0}, storage.k[ring.stage], full);
      }
      if (Config::kIsQuantized && p.index_k_scale.is_per_token()) {
        const auto token = [&](int at) { return p.batch.token(tile.sequence, tile.view, first + at); };
        load_scales<Config::kKeys>(p.index_k_scale, 0, tile.view.seqlen_k - first, storage.k_scale[ring.stage], full,
                                   lane, token);
      }
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

/// kIsScaled: index keys have a scale per token.
template <class Config, bool kIsScaled>
__device__ __forceinline__ void consume(const SelectParams& p, typename Config::Storage& storage, int num_tiles,
                                        int consumer) {
  using namespace cute;
  using Epilogue = std::conditional_t<Config::kStoresScores, ScoreEpilogue<Config>, TopkEpilogue<Config>>;
  constexpr int kHeld = 2 * Config::kMmaRows;
  const int thread = threadIdx.x % 128, lane = thread % 32;
  const int queries = Config::kRows / p.heads;  // of this warpgroup
  const RowMap<Config> rows{thread, p.heads, queries};

  typename Config::Mma mma;
  const auto slice = mma.get_thread_slice(thread);
  const Tensor left =
      slice.partition_fragment_A(make_tensor(make_smem_ptr(storage.q[consumer]), typename Config::LayoutQ{}));
  Tensor acc = partition_fragment_C(mma, Shape<Int<Config::kRows>, Int<Config::kKeys>>{});

  PipelineState<Config::kStages> ring;
  for (int work = blockIdx.x; work < num_tiles * p.num_splits; work += gridDim.x) {
    const WorkItem item = work_item(p, num_tiles, work);
    const QueryTile tile = find_tile(p.batch, p.index, item.tile, select_queries_per_tile(p.heads, Config::kCapacity));
    const StageRange range = stage_range<Config>(p, tile, item.split);
    const int first = consumer * queries;  // query of the tile
    load_index_queries<Config, 128>(p, tile.q_row, tile.count, first, thread, storage.q[consumer],
                                    storage.q_scale[consumer]);
    cutlass::arch::fence_view_async_shared();
    sync(of_consumer(SelectBarrier::kWarpgroup, consumer), 128);

    const int query = first + rows.owned() / p.heads, head = rows.owned() % p.heads;
    Epilogue epilogue(p, tile.position + query, rows.owns() && query < tile.count);
    if constexpr (Config::kStoresScores) {
      epilogue.begin(p, tile.q_row + query, head, storage.q_scale[consumer][rows.owned()]);
    }
    int limit[kHeld];  // keys that each held row sees
    CUTE_UNROLL
    for (int i = 0; i < kHeld; ++i) limit[i] = tile.position + first + rows.held(i) / p.heads + 1;

    for (int stage = range.begin; stage < range.end; ++stage) {
      FullBarrier::wait(&storage.full[ring.stage], ring.phase);
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

      // Nothing may branch on the accumulators as long as a product is under way.
      std::int32_t bits[Config::kBlocksPerStage][kHeld];
      CUTE_UNROLL
      for (int m = 0; m < Config::kMmaRows; ++m) {  // maxima of the first 64 rows beside the product of the last
        m + 1 < Config::kMmaRows ? warpgroup_wait<1>() : warpgroup_wait<0>();
        warpgroup_fence_operand(acc);
        if constexpr (kIsScaled) scale_columns<Config>(acc, m, storage.k_scale[ring.stage], lane);
        CUTE_UNROLL
        for (int i = 0; i < 2 * Config::kBlocksPerStage; ++i) {
          const int row = 2 * m + i % 2, first = i / 2 * Config::kBlock;
          bits[i / 2][row] =
              largest_bits<Config::kBlock / 4>([&](int c) { return held_score<Config>(acc, row, first, c); });
        }
      }
      if (lane == 0) EmptyBarrier::arrive(&storage.empty[ring.stage]);
      int left[kHeld];
      CUTE_UNROLL
      for (int i = 0; i < kHeld; ++i) left[i] = limit[i] - stage * Config::kKeys;
      float top[Config::kBlocksPerStage][kHeld];
      CUTE_UNROLL
      for (int b = 0; b < Config::kBlocksPerStage; ++b) {
        exact_max<Config>(acc, b * Config::kBlock, left, bits[b], lane, top[b]);
      }
      CUTE_UNROLL
      for (int b = 0; b < Config::kBlocksPerStage; ++b) {
        epilogue.take(p, exchange_max(top[b], lane), stage * Config::kBlocksPerStage + b);
      }
      ring.advance();
    }
    epilogue.finish(p, tile.q_row + query, head, item.split);
    sync(of_consumer(SelectBarrier::kWarpgroup, consumer), 128);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    select_kernel(const SelectParams p, const __grid_constant__ CUtensorMap map_k) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  init_barriers([&] {
    const bool is_scaled = Config::kIsQuantized && p.index_k_scale.is_per_token();
    init_ring(storage.full, storage.empty, 4 * Config::kConsumers, is_scaled ? 33 : 1);
  });
  wait_for_earlier_kernels();

  const int num_tiles = p.index.tiles[p.batch.batch + 1];
  // 64512 registers of the CTA: 24 x 128 for the producer, 240 x 256 for the consumers.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<24>();
    if (threadIdx.x < 32) produce<Config>(p, map_k, storage, num_tiles, threadIdx.x);
  } else {
    cutlass::arch::warpgroup_reg_alloc<240>();
    const int consumer = threadIdx.x / 128 - 1;
    if (Config::kIsQuantized && p.index_k_scale.is_per_token()) {
      consume<Config, Config::kIsQuantized>(p, storage, num_tiles, consumer);
    } else {
      consume<Config, false>(p, storage, num_tiles, consumer);
    }
  }
}

/// Merges the lists of the splits of one row, lower keys first.
template <int kCapacity>
__global__ void merge_lists_kernel(const SelectParams p) {
  wait_for_earlier_kernels();
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
  std::int32_t* out = p.topk_indices.row(head, row);
  list.write(candidates, p.rules.topk, out, p.topk_indices.strides[2]);
}

}  // namespace openmsa::cuda::sm90::prefill
