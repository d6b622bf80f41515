// The index branch with selection beside it (eq.: m[i,b,r] = max_j index_q[i,r] . index_k[j], top-k over b).
//
// A persistent CTA takes a tile of queries with all index heads: 256 (query, head) rows in two consumer warpgroups of
// two products each. The producer streams tiles of 128 index keys, which both warpgroups read; scores live in
// accumulators only. A warpgroup reduces those of a product to one maximum per row and kv_block while its other product
// is under way, and offers it to the row's top-k list, which one thread keeps in registers:
//
//   tensor cores   | 0 of stage s | 1 of stage s | 0 of s + 1   | 1 of s + 1   |
//   warps                         | maxima of 0  | maxima of 1, lists of s | ...
//
// The assembler keeps products under way in straight-line code alone, so that this goes on for a run of stages, and
// begins anew with the next run.
//
// e4m3 keys meet queries in e4m3, or become fp16 in shared memory, by three warps beside the producer
// (tile/index_queries.cuh says how queries do). What a row of queries was multiplied by is the same for all keys and no
// matter for their order, and so is a scale of all keys; scales per token multiply scores, scales per kv_block maxima.
//
//   barrier      arrivals                      waited on by   guards
//   raw_full[i]  producer + bytes of the keys  wideners       e4m3 keys that become fp16 have arrived
//   full[i]      producer + bytes of the keys, consumers      keys of stage i are there
//                or one lane of each widener
//                (+ 32 lanes where keys have scales)
//   empty[i]     one lane of each warp         producer       all warpgroups are done with stage i
//   kWarpgroup   128 threads of a warpgroup    the same       its part of q is in shared memory / no longer read
//
// Per tile of 128 keys and 256 rows (index_dim 128): products 2048 cycles of the tensor cores, 1024 in e4m3; maxima 256
// cycles of the ALU; scales per token 256 cycles of the FMA units. Bound by the products; with scales per token by the
// instructions around them, of which a warp issues one in five cycles.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/sm90/prefill/select/epilogue.cuh"
#include "cuda/sm90/prefill/select/maxima.cuh"
#include "cuda/sm90/prefill/select/params.h"
#include "cuda/sm90/tile/index_queries.cuh"
#include "cuda/sm90/tile/load_scales.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
#include "cuda/sm90/tile/page_loads.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/warp_mma.cuh"
#include "cuda/sm90/tile/widen.cuh"

namespace openmsa::cuda::sm90::prefill {

/// Named barriers of the table above.
enum class SelectBarrier {
  kWarpgroup = 1,  // and 2: of each warpgroup
};

/// Query_: element type of index_q in memory; Cached_: of the keys. kIsExact: keys in e4m3 meet queries in 16 bits.
/// kCapacity: length of the lists, at least topk; 0: no selection, block scores to memory. kHasTokenScales: index keys
/// have a scale per token.
template <class Query_, class Cached_, int kDim_, int kBlock_, int kCapacity_, bool kHasTokenScales_, bool kIsExact_>
struct SelectConfig {
  using Query = Query_;
  using Cached = Cached_;
  static constexpr bool kIsExact = kIsExact_;
  using Key = std::conditional_t<kIsExact, cutlass::half_t, Cached>;  // of the product
  static constexpr bool kIsQuantized = sizeof(Cached) == 1;
  static constexpr int kDim = kDim_;
  static constexpr int kBlock = kBlock_;
  static constexpr int kCapacity = kCapacity_;
  static constexpr bool kStoresScores = kCapacity == 0;
  static constexpr bool kHasTokenScales = kHasTokenScales_;

  static constexpr int kKeys = 128;                       // per stage
  static constexpr int kBlocksPerStage = kKeys / kBlock;  // 1 or 2
  static constexpr int kProducts = select_products(kCapacity);
  static constexpr int kRows = kProducts * kProductRows;  // (query, head) rows of a warpgroup
  static constexpr int kConsumers = kSelectWarpgroups;
  static constexpr int kRunStages = kProducts == 1 ? 1 : 4;  // stages with products under way from one to the next
  // What the CTA starts with, 168 x 384, shared out between producer and consumers.
  static constexpr int kProducerRegisters = kIsExact ? 40 : 24, kConsumerRegisters = kIsExact ? 232 : 240;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Cached));
  using Widened = WidenedTile<kDim, kKeys>;
  static constexpr int kWideners = kIsExact ? 3 : 0;  // warps
  static constexpr int kStageBytes = kIsExact ? Widened::kBytes : kKeys * kRowBytes;
  static constexpr int kStages = (128 << 10) / kStageBytes > 8 ? 8 : (128 << 10) / kStageBytes;

  using Atom = std::conditional_t<(kDim * sizeof(Key) >= 128), cute::GMMA::Layout_K_SW128_Atom<Key>,
                                  cute::GMMA::Layout_K_SW64_Atom<Key>>;
  using LayoutQ = decltype(cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kRows>, cute::Int<kDim>>{}));
  using LayoutK = decltype(cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kKeys>, cute::Int<kDim>>{}));
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Key, Key, float, cute::Shape<cute::_64, cute::Int<kKeys>, cute::_32>,
                                 cute::GMMA::Major::K, cute::GMMA::Major::K>()));

  struct Storage {
    alignas(1024) Key q[kConsumers][kRows * kDim];
    alignas(1024) Key k[kStages][kStageBytes / sizeof(Key)];
    float q_scale[kConsumers][kRows];           // rounded row -> row
    alignas(16) float k_scale[kStages][kKeys];  // or those of a stage's kv_blocks
    std::uint64_t full[kStages], empty[kStages], raw_full[kStages];
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
    blocks = Candidates(p.rules, last).of_shard(p.rules.shard).end;
  }
  const int stages = (blocks + Config::kBlocksPerStage - 1) / Config::kBlocksPerStage;
  return {static_cast<int>(static_cast<std::int64_t>(stages) * split / splits),
          static_cast<int>(static_cast<std::int64_t>(stages) * (split + 1) / splits)};
}

/// The work items of a call, long tiles first: they are at the ends of sequences. CTAs take one in each round; rounds go
/// to and fro, so that whoever had a longer tile has a shorter one next.
struct Work {
  int num_tiles, splits;

  __device__ __forceinline__ int items() const { return num_tiles * splits; }
  __device__ __forceinline__ int rounds() const {
    return (items() + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  }
  /// This CTA's item of a round; it does not exist where all have been taken, which ends the last round.
  __device__ __forceinline__ WorkItem item(int round) const {
    const int cta = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x, number = round * gridDim.x + cta;
    return {number < items() ? num_tiles - 1 - number / splits : -1, number % splits};
  }
};

/// By a warp: a lane for each page of a stage.
template <class Config>
__device__ __forceinline__ void produce(const SelectParams& p, const CUtensorMap& map_k,
                                        typename Config::Storage& storage, const Work& work, int lane) {
  using Tile = SwizzledTile<Config::kKeys, Config::kRowBytes>;
  const int box_rows = p.key_box_rows, log2_box = log2_of(box_rows);
  PipelineState<Config::kStages> ring;
  for (int round = 0; round < work.rounds(); ++round) {
    const WorkItem item = work.item(round);
    if (!item.exists()) break;
    QueryTile tile = find_tile(p.batch, p.index, item.tile, p.queries_per_tile);
    const StageRange range = stage_range<Config>(p, tile, item.split, work.splits);
    tile.view.seqlen_k = p.rules.shard.held_keys(tile.view.seqlen_k, Config::kBlock);
    PageWindow pages(p.batch, tile.sequence, tile.view.seqlen_k, lane);
    for (int stage = range.begin; stage < range.end; ++stage, ring.advance()) {
      const int first = stage * Config::kKeys, used = min(Config::kKeys, tile.view.seqlen_k - first);
      const int count = p.batch.page_size == 0 ? 1 : (used + box_rows - 1) >> log2_box;
      const KeyBox box = key_box(p.batch, tile.view, pages, first, box_rows, count, lane);
      EmptyBarrier::wait(&storage.empty[ring.stage], ring.phase ^ 1);
      std::uint64_t* const full = &storage.full[ring.stage];
      std::uint64_t* const loaded = Config::kIsExact ? &storage.raw_full[ring.stage] : full;
      if (lane == 0) FullBarrier::arrive_and_expect_tx(loaded, count * box_rows * Config::kRowBytes);
      __syncwarp();
      if (box.exists) {
        auto* to = reinterpret_cast<char*>(storage.k[ring.stage]);
        if constexpr (Config::kIsExact) to = Config::Widened::template source<char>(to);
        load_box<Tile, typename Config::Cached>(map_k, loaded, to + lane * box_rows * Tile::kPanelBytes, 0, box);
      }
      if constexpr (Config::kHasTokenScales) {
        load_box_scales<Config::kKeys>(p.batch, tile.view, p.index_k_scale, 0, box, first, box_rows,
                                       storage.k_scale[ring.stage], full, lane);
      } else if (p.index_block_scale.exists()) {
        const auto first_page = [&](int block) {
          const std::int32_t page = __shfl_sync(kFullWarp, box.page, block * Config::kBlock >> log2_box);
          return block * Config::kBlock < used ? page : -1;
        };
        load_block_scales(p.index_block_scale, Config::kBlocksPerStage, storage.k_scale[ring.stage], full, lane,
                          first_page);
      }
    }
  }
}

/// Makes every stage of e4m3 keys 16 bits wide, by the warps beside the producer.
template <class Config>
__device__ __forceinline__ void widen_stages(const SelectParams& p, typename Config::Storage& storage, const Work& work,
                                             int widener, int lane) {
  PipelineState<Config::kStages> ring;
  for (int round = 0; round < work.rounds(); ++round) {
    const WorkItem item = work.item(round);
    if (!item.exists()) break;
    const QueryTile tile = find_tile(p.batch, p.index, item.tile, p.queries_per_tile);
    const StageRange range = stage_range<Config>(p, tile, item.split, work.splits);
    for (int stage = range.begin; stage < range.end; ++stage, ring.advance()) {
      FullBarrier::wait(&storage.raw_full[ring.stage], ring.phase);
      Config::Widened::template widen<typename Config::Key, false>(storage.k[ring.stage], widener, Config::kWideners,
                                                                   lane);
      cutlass::arch::fence_view_async_shared();
      __syncwarp();
      if (lane == 0) FullBarrier::arrive(&storage.full[ring.stage]);
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
  __device__ __forceinline__ int owned() const { return held(thread % 4 % (2 * Config::kProducts)); }
  __device__ __forceinline__ bool owns() const {
    return thread % 4 < 2 * Config::kProducts && owned() / heads < queries;
  }
};

template <class Config>
__device__ __forceinline__ void consume(const SelectParams& p, typename Config::Storage& storage, const Work& work,
                                        int consumer) {
  using namespace cute;
  using Epilogue = std::conditional_t<Config::kStoresScores, ScoreEpilogue<Config>, TopkEpilogue<Config>>;
  constexpr int kHeld = 2 * Config::kProducts;
  const int thread = threadIdx.x % 128, lane = thread % 32;
  const int queries = Config::kProducts * (kProductRows / p.heads);  // of this warpgroup
  const RowMap<Config> rows{thread, p.heads, queries};

  typename Config::Mma mma;
  const auto slice = mma.get_thread_slice(thread);
  const Tensor left =
      slice.partition_fragment_A(make_tensor(make_smem_ptr(storage.q[consumer]), typename Config::LayoutQ{}));
  Tensor acc = partition_fragment_C(mma, Shape<Int<Config::kRows>, Int<Config::kKeys>>{});
  const auto start_product = [&](int m, int stage) {
    const Tensor right =
        slice.partition_fragment_B(make_tensor(make_smem_ptr(storage.k[stage]), typename Config::LayoutK{}));
    Tensor scores = acc(_, m, 0);
    warpgroup_fence_operand(scores);
    warpgroup_arrive();
    mma.accumulate_ = GMMA::ScaleOut::Zero;
    CUTE_UNROLL
    for (int i = 0; i < size<2>(left); ++i) {
      gemm(mma, left(_, m, i), right(_, 0, i), scores);
      mma.accumulate_ = GMMA::ScaleOut::One;
    }
    warpgroup_commit_batch();
  };

  PipelineState<Config::kStages> ring;
  for (int round = 0; round < work.rounds(); ++round) {
    const WorkItem item = work.item(round);
    if (!item.exists()) break;
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
    for (int i = 0; i < kHeld; ++i) {
      limit[i] = p.rules.shard.held_keys(tile.position + first + rows.held(i) / p.heads + 1, Config::kBlock);
    }

    // The scores of a stage whose products are under way; those of the next one follow where it is of the same run.
    const auto take_stage = [&](int stage, auto has_next) {
      constexpr bool kHasNext = decltype(has_next)::value;
      const auto next = ring.after(1);
      float top[Config::kBlocksPerStage][kHeld], scale[Config::kBlocksPerStage];
      CUTE_UNROLL
      for (int m = 0; m < Config::kProducts; ++m) {
        kHasNext || m + 1 < Config::kProducts ? warpgroup_wait<Config::kProducts - 1>() : warpgroup_wait<0>();
        Tensor scores = acc(_, m, 0);
        warpgroup_fence_operand(scores);
        if constexpr (Config::kHasTokenScales) scale_columns<Config>(acc, m, storage.k_scale[ring.stage], lane);
        if (m + 1 == Config::kProducts) {
          CUTE_UNROLL
          for (int b = 0; b < Config::kBlocksPerStage; ++b) {
            scale[b] = p.index_block_scale.exists() ? storage.k_scale[ring.stage][b] : 1;
          }
          __syncwarp();
          if (lane == 0) EmptyBarrier::arrive(&storage.empty[ring.stage]);
        }
        const int seen[2] = {limit[2 * m] - stage * Config::kKeys, limit[2 * m + 1] - stage * Config::kKeys};
        CUTE_UNROLL
        for (int b = 0; b < Config::kBlocksPerStage; ++b) {
          float tops[2];
          largest_scores<Config>(acc, m, b * Config::kBlock, seen, lane, tops);
          top[b][2 * m] = tops[0];
          top[b][2 * m + 1] = tops[1];
        }
        if constexpr (kHasNext) {
          if (m == 0) FullBarrier::wait(&storage.full[next.stage], next.phase);
          start_product(m, next.stage);
        }
      }
      CUTE_UNROLL
      for (int b = 0; b < Config::kBlocksPerStage; ++b) {
        epilogue.take(p, exchange_max(top[b], lane) * scale[b], stage * Config::kBlocksPerStage + b);
      }
      ring = next;
    };
    const auto take_run = [&](int stage, auto stages) {
      constexpr int kRun = decltype(stages)::value;
      FullBarrier::wait(&storage.full[ring.stage], ring.phase);
      CUTE_UNROLL
      for (int m = 0; m < Config::kProducts; ++m) start_product(m, ring.stage);
      CUTE_UNROLL
      for (int i = 0; i < kRun - 1; ++i) take_stage(stage + i, true_type{});
      take_stage(stage + kRun - 1, false_type{});
    };
    int stage = range.begin;
#pragma unroll 1
    for (; stage + Config::kRunStages <= range.end; stage += Config::kRunStages) {
      take_run(stage, Int<Config::kRunStages>{});
    }
    if constexpr (Config::kRunStages > 1) {
#pragma unroll 1
      for (; stage < range.end; ++stage) take_run(stage, _1{});
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
    const bool has_scales = Config::kHasTokenScales || p.index_block_scale.exists();
    init_ring(storage.full, storage.empty, 4 * Config::kConsumers,
              (Config::kIsExact ? Config::kWideners : 1) + (has_scales ? 32 : 0));
    for (std::uint64_t& raw_full : storage.raw_full) FullBarrier::init(&raw_full, 1);
  });
  wait_for_earlier_kernels();

  const Work work{p.num_tiles(), p.splits()};
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<Config::kProducerRegisters>();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == 0) {
      produce<Config>(p, map_k, storage, work, lane);
    } else if constexpr (Config::kIsExact) {
      widen_stages<Config>(p, storage, work, warp - 1, lane);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<Config::kConsumerRegisters>();
    consume<Config>(p, storage, work, threadIdx.x / 128 - 1);
  }
}

}  // namespace openmsa::cuda::sm90::prefill
