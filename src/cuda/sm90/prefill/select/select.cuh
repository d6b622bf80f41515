// The index branch with selection beside it (eq.: m[i,b,r] = max_j index_q[i,r] . index_k[j], top-k over b).
//
// A persistent CTA takes a tile of queries with all index heads: 256 (query, head) rows in two consumer warpgroups, in
// four where keys are e4m3. The producer streams tiles of 128 index keys, which all warpgroups read; scores live in
// accumulators only. A warpgroup reduces its scores to one maximum per row and kv_block while another one multiplies,
// and offers it to the row's top-k list, which one thread keeps in registers.
//
// e4m3 keys: queries are rounded to e4m3 as they are loaded, each row by 448 over its largest magnitude. That factor is
// the same for all keys and no matter for their order, and so is a scale of all keys; scales per token multiply scores.
//
//   barrier      arrivals                      waited on by   guards
//   full[i]      producer + bytes of the keys  consumers      keys of stage i have arrived
//                (+ 32 lanes where keys have scales)
//   empty[i]     one lane of each warp         producer       all warpgroups are done with stage i
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
#include "cuda/common/math.h"
#include "cuda/generic/topk/best_list.cuh"
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
  kWarpgroup = 1,  // to 4: of each warpgroup
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
  static constexpr SelectRows kTileRows = select_rows(kIsQuantized, kCapacity);
  static constexpr int kMmaRows = kTileRows.products;
  static constexpr int kRows = kMmaRows * 64;  // (query, head) rows of a warpgroup
  static constexpr int kConsumers = kTileRows.warpgroups;
  // Registers: 24 x 128 for the producer, the rest of what the CTA starts with (168 x 384 or 96 x 640) for the consumers.
  static constexpr int kConsumerRegisters = kConsumers == 2 ? 240 : 112;
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
__device__ __forceinline__ StageRange stage_range(const SelectParams& p, const QueryTile& tile, int split, int splits) {
  const int last = tile.position + tile.count - 1;
  int blocks;
  if constexpr (Config::kStoresScores) {
    blocks = last < 0 ? 0 : last / Config::kBlock + 1;
  } else {
    const Candidates candidates(p.rules, last);
    blocks = candidates.end;
  }
  const int stages = (blocks + Config::kBlocksPerStage - 1) / Config::kBlocksPerStage;
  return {static_cast<int>(static_cast<std::int64_t>(stages) * split / splits),
          static_cast<int>(static_cast<std::int64_t>(stages) * (split + 1) / splits)};
}

/// The work items of a call.
struct Work {
  int num_tiles, splits;

  __device__ __forceinline__ int items() const { return num_tiles * splits; }
  /// Long tiles first, they are at the ends of sequences.
  __device__ __forceinline__ WorkItem item(int number) const {
    return {num_tiles - 1 - number / splits, number % splits};
  }
};

template <class Config>
__device__ __forceinline__ void produce(const SelectParams& p, const CUtensorMap& map_k,
                                        typename Config::Storage& storage, const Work& work, int lane) {
  PipelineState<Config::kStages> ring;
  for (int number = blockIdx.x; number < work.items(); number += gridDim.x) {
    const WorkItem item = work.item(number);
    const QueryTile tile = find_tile(p.batch, p.index, item.tile, p.queries_per_tile);
    const StageRange range = stage_range<Config>(p, tile, item.split, work.splits);
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
__device__ __forceinline__ void consume(const SelectParams& p, typename Config::Storage& storage, const Work& work,
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
  for (int number = blockIdx.x; number < work.items(); number += gridDim.x) {
    const WorkItem item = work.item(number);
    const QueryTile tile = find_tile(p.batch, p.index, item.tile, p.queries_per_tile);
    const StageRange range = stage_range<Config>(p, tile, item.split, work.splits);
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
    epilogue.finish(p, tile.q_row + query, head, query * p.heads + head, item, work.splits);
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

  const Work work{p.num_tiles(), p.splits()};
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<24>();
    if (threadIdx.x < 32) produce<Config>(p, map_k, storage, work, threadIdx.x);
  } else {
    cutlass::arch::warpgroup_reg_alloc<Config::kConsumerRegisters>();
    const int consumer = threadIdx.x / 128 - 1;
    if (Config::kIsQuantized && p.index_k_scale.is_per_token()) {
      consume<Config, Config::kIsQuantized>(p, storage, work, consumer);
    } else {
      consume<Config, false>(p, storage, work, consumer);
    }
  }
}

inline constexpr int kMergeWarps = 8, kMergeLoads = 8;  // candidates of a lane on their way at once

/// topk_indices from the lists of a row's splits: a warp per row of a tile.
template <int kCapacity>
__global__ void __launch_bounds__(kMergeWarps * 32) merge_lists_kernel(const SelectParams p) {
  constexpr int kListCapacity = 128;
  __shared__ alignas(16) Ranked memory[kMergeWarps][kListCapacity];
  wait_for_earlier_kernels();
  const int rows = p.queries_per_tile * p.heads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int number = blockIdx.x * kMergeWarps + warp, at = number % rows, splits = p.splits();
  if (splits == 1 || number / rows >= p.num_tiles()) return;
  const QueryTile tile = find_tile(p.batch, p.index, number / rows, p.queries_per_tile);
  const int query = at / p.heads, head = at % p.heads;
  if (query >= tile.count) return;

  const Candidates rules(p.rules, tile.position + query);
  generic::BestList<kListCapacity> best(memory[warp], rules.slots, lane);
  const Ranked* const lists = p.partial_lists + partial_list(p, number / rows, splits, 0, at, kCapacity);
  const int count = rules.slots > 0 ? splits * kCapacity : 0;
  for (int first = lane; __any_sync(kFullWarp, first < count); first += 32 * kMergeLoads) {
    Ranked held[kMergeLoads];
#pragma unroll
    for (int i = 0; i < kMergeLoads; ++i) {
      const int one = first + 32 * i;
      held[i] = one < count ? lists[std::int64_t{one / kCapacity} * rows * kCapacity + one % kCapacity] : kNoCandidate;
    }
#pragma unroll
    for (int i = 0; i < kMergeLoads; ++i) best.offer(held[i] != kNoCandidate, held[i]);
  }
  if (rules.slots > 0) best.keep_best();
  std::int32_t* const to = p.topk_indices.row(head, tile.q_row + query);
  const std::int64_t stride = p.topk_indices.strides[2];
  const int local = rules.init + rules.slots;
  for (int i = lane; i < rules.init; i += 32) to[i * stride] = i;
  best.write(to + rules.init * stride, stride);
  for (int i = lane; i < rules.local; i += 32) to[(local + i) * stride] = rules.end + i;
  for (int i = local + rules.local + lane; i < p.rules.topk; i += 32) to[i * stride] = -1;
}

}  // namespace openmsa::cuda::sm90::prefill
