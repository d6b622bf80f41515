// The index branch of a decode step (eq.: m[i,b,r] = max_j index_q[i,r] . index_k[j], the best k of each segment).
//
// A CTA goes along its segments (split.h). One warp streams stages of 64 index keys, or of 128 in e4m3. Two
// warpgroups take them in turn and multiply them with the (query, head) rows of the query tile: tiles of 64 keys are
// the rows of the product, queries its columns, both in shared memory. The maximum over the 16 keys of a warp goes to a
// buffer of scores in shared memory, and when that is full or the segment ends, warps pick the best candidates of each
// row.
//
//   barrier     arrivals                      waited on by     guards
//   full[i]     producer + bytes of the keys  one warpgroup    keys of stage i have arrived
//               (+ 32 lanes where keys have scales)
//   empty[i]    one lane of each warp of      producer         its warpgroup is done with stage i
//               the warpgroup
//   kConsumers  all consumers                 the same         queries are in shared memory; score_buffer has
//                                                              been written, has been read
//
// e4m3 keys meet queries in e4m3, or become fp16 on their way into registers, from where the product takes them then
// (tile/index_queries.cuh says how queries do). Scales of keys, and of kv_blocks, multiply scores.
//
// Bound by memory: a stage of 16 KB takes an SM about 900 cycles of its share of the bandwidth; product and maxima take
// a warpgroup some 300.
#pragma once

#include <cutlass/arch/barrier.h>

#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/generic/topk/best_list.cuh"
#include "cuda/sm90/decode/params.h"
#include "cuda/sm90/decode/tile_scheduler.cuh"
#include "cuda/sm90/tile/from_e4m3.cuh"
#include "cuda/sm90/tile/index_queries.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
#include "cuda/sm90/tile/page_loads.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/warp_mma.cuh"

namespace openmsa::cuda::sm90::decode {

/// Named barriers of the table above.
enum class SelectBarrier {
  kConsumers = 1,
};

/// Query_: element type of index_q in memory; Cached_: of the keys. kListCapacity_: twice topk, or more. kCtasPerSm_: that
/// share an SM. kIsExact_: keys in e4m3 meet queries in 16 bits.
template <class Query_, class Cached_, int kDim_, int kRows_, int kListCapacity_, int kCtasPerSm_, bool kIsExact_>
struct SelectConfig {
  using Query = Query_;
  using Cached = Cached_;
  static constexpr bool kIsExact = kIsExact_;
  using Key = std::conditional_t<kIsExact, cutlass::half_t, Cached>;  // of the product
  static constexpr int kDim = kDim_;
  static constexpr int kRows = kRows_;  // (query, head) rows of a tile

  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Cached));
  static constexpr bool kIsQuantized = sizeof(Cached) == 1;
  static constexpr int kStageKeys = decode_stage_keys(kIsQuantized);
  static constexpr int kStageTiles = kStageKeys / kTileKeys;
  static constexpr int kUnitStages = kUnitKeys / kStageKeys;
  using Tile = SwizzledTile<kStageKeys, kRowBytes>;

  using Atom = std::conditional_t<(kDim * sizeof(Key) >= 128), cute::GMMA::Layout_K_SW128_Atom<Key>,
                                  cute::GMMA::Layout_K_SW64_Atom<Key>>;
  using LayoutQ = decltype(cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kRows>, cute::Int<kDim>>{}));
  using LayoutK = decltype(cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kStageKeys>, cute::Int<kDim>>{}));
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Key, Key, float, cute::Shape<cute::Int<kTileKeys>, cute::Int<kRows>, cute::_32>,
                                 cute::GMMA::Major::K, cute::GMMA::Major::K>()));
  using ExactMma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<cutlass::half_t, cutlass::half_t, float,
                                 cute::Shape<cute::Int<kTileKeys>, cute::Int<kRows>, cute::_16>, cute::GMMA::Major::K,
                                 cute::GMMA::Major::K>()));

  static constexpr int kListCapacity = kListCapacity_;
  static constexpr int kCtasPerSm = kCtasPerSm_;
  static constexpr bool kIsAlone = kCtasPerSm == 1;
  static constexpr int kGroups = kIsAlone ? 2 : 1;  // warpgroups that multiply
  static constexpr int kConsumers = 4 * kGroups;    // their warps
  static constexpr int kThreads = 32 * (kConsumers + 1);

  static constexpr int kStageBytes = kStageKeys * kRowBytes;
  static constexpr int kStages = ((kIsAlone ? 96 : 48) << 10) / kStageBytes;
  static_assert(kStageBytes % 1024 == 0);
  static_assert(kStages % kGroups == 0, "a stage belongs to one group: nobody else may fall rounds behind");
  static constexpr int kBufferTiles = kIsAlone ? (kRows == 8 ? 64 : 32) : 512 / kRows;

  /// A CTA that is alone with few rows leaves registers for one of the attention, which then waits on the same SM.
  static constexpr int kMinCtas = kIsAlone && kRows == 8 ? 2 : kCtasPerSm;

  static constexpr int kScaleStages = kIsQuantized ? kStages : 1;
  struct Storage {  // on a 1024-byte boundary
    char k[kStages][kStageBytes];
    Key q[kRows * kDim];
    alignas(16) float k_scale[kScaleStages][kIsQuantized ? kStageKeys : 1];
    alignas(16) float score_buffer[kRows][kBufferTiles + 1][4];  // of each warp; rows differ in their banks
    alignas(16) Ranked lists[kRows][kListCapacity];
    int list_sizes[kRows];
    SequenceView lengths[kLaneSequences];  // of a small batch
    std::uint64_t full[kStages], empty[kStages];
  };
};

inline constexpr int kUnitTiles = kUnitKeys / kTileKeys;

/// The sequence of a segment with the keys that are held.
__device__ __forceinline__ SequenceView held_sequence(const SelectParams& p, const Segment& segment) {
  SequenceView held = segment.view;
  held.seqlen_k = p.rules.shard.held_keys(held.seqlen_k, p.rules.block_size);
  return held;
}

/// Pages of a segment, the first ones looked up; nothing outside of the table, whatever the lengths are: from useless ones
/// may follow a segment of no sequence.
__device__ __forceinline__ PageWindow pages_of(const SelectParams& p, const Segment& segment, int lane) {
  const std::int32_t seqlen_k = min(held_sequence(p, segment).seqlen_k, p.table_keys);
  PageWindow pages(p.batch, max(0, segment.sequence), seqlen_k, lane);
  if (p.batch.page_size != 0) pages.at(max(0, segment.begin * kUnitKeys >> log2_of(p.batch.page_size)), 1);
  return pages;
}

/// `pages`: of the first segment.
template <class Config>
__device__ __forceinline__ void produce_index_keys(const SelectParams& p, const CUtensorMap& map_k,
                                                   typename Config::Storage& storage, TileScheduler& scheduler,
                                                   Segment& segment, PageWindow pages, int lane) {
  PipelineState<Config::kStages> ring;
  bool is_more = segment.exists();
  while (is_more) {
    const SequenceView held = held_sequence(p, segment);
    for (std::int32_t first = segment.begin * kUnitKeys; first < segment.end * kUnitKeys;
         first += Config::kStageKeys, ring.advance()) {
      const std::int32_t used = max(0, min(Config::kStageKeys, held.seqlen_k - first));
      const int count = p.batch.page_size == 0 ? 1 : (used + p.key_box_rows - 1) >> log2_of(p.key_box_rows);
      const KeyBox box = key_box(p.batch, held, pages, first, p.key_box_rows, count, lane);
      std::uint64_t* const full = &storage.full[ring.stage];
      EmptyBarrier::wait(&storage.empty[ring.stage], ring.phase ^ 1);
      if (lane == 0) {
        FullBarrier::arrive_and_expect_tx(full, count * p.key_box_rows * Config::kRowBytes);
      }
      __syncwarp();
      if (box.exists) {
        char* const to = storage.k[ring.stage] + lane * p.key_box_rows * Config::Tile::kPanelBytes;
        load_box<Config::Tile, typename Config::Cached>(map_k, full, to, 0, box);
      }
      if (Config::kIsQuantized && p.index_k_scale.is_per_token()) {
        load_box_scales<Config::kStageKeys>(p.batch, held, p.index_k_scale, 0, box, first, p.key_box_rows,
                                            storage.k_scale[ring.stage], full, lane);
      } else if (Config::kIsQuantized && p.index_block_scale.exists()) {
        const int log2_block = log2_of(p.rules.block_size), log2_box = log2_of(p.key_box_rows);
        const auto first_page = [&](int block) {
          const int key = block << log2_block;
          const std::int32_t page = __shfl_sync(kFullWarp, box.page, key >> log2_box);
          return key < used ? page : -1;
        };
        load_block_scales(p.index_block_scale, Config::kStageKeys >> log2_block, storage.k_scale[ring.stage], full,
                          lane, first_page);
      }
    }
    is_more = scheduler.next(segment);
    if (is_more) pages = pages_of(p, segment, lane);
  }
}

/// Largest values of kCount columns over the lanes that differ in bit kDistance and above, which share out the columns
/// as long as there is more than one. Returns the first of this lane's; their maxima are at the front of `top`.
template <int kCount, int kDistance>
__device__ __forceinline__ int share_maxima(float* top, int lane) {
  if constexpr (kDistance == 32) {
    return 0;
  } else {
    constexpr int kHalf = kCount / 2, kLeft = kHalf > 1 ? kHalf : 1;
    const bool upper = (lane & kDistance) != 0;
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      const float mine = upper ? top[i + kHalf] : top[i], other = upper ? top[i] : top[i + kHalf];
      top[i] = fmaxf(mine, __shfl_xor_sync(kFullWarp, other, kDistance));
    }
    return (upper ? kHalf : 0) + share_maxima<kLeft, 2 * kDistance>(top, lane);
  }
}

/// The largest of the scores of a warp's keys in each column, ignoring NaN, to place(column); `scores`: of this
/// thread's keys lane / 4 and lane / 4 + 8 in columns 8 n + 2 t and 8 n + 2 t + 1.
template <class Config, class Scores, class Place>
__device__ __forceinline__ void store_maxima(const Scores& scores, Place place, int lane) {
  constexpr int kValues = Config::kRows / 4;
  float top[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    top[i] = fmaxf(scores(i / 2 * 4 + i % 2), scores(i / 2 * 4 + i % 2 + 2));
  }
  const int first = share_maxima<kValues, 4>(top, lane);
  if (lane >= 4 * kValues) return;  // the others have the same columns
#pragma unroll
  for (int i = 0; i < (kValues > 8 ? kValues / 8 : 1); ++i) {
    place((first + i) / 2 * 8 + lane % 4 * 2 + (first + i) % 2) = top[i];
  }
}

/// Offers the buffered scores, those of key units [begin, begin + units) of the segment, to the lists of this warp's
/// rows, and writes the lists out, the best first, when the segment ends.
template <class Config>
__device__ __forceinline__ void take_scores(const SelectParams& p, typename Config::Storage& storage,
                                            const Segment& segment, int kept, int begin, int units, int warp,
                                            int lane) {
  const int log2_tiles = log2_of(p.rules.block_size) - log2_of(kTileKeys);  // of a kv_block
  const int blocks_per_unit = kUnitTiles >> log2_tiles;
  const int queries = min(p.tile_queries, segment.view.seqlen_q - segment.first_query);
  const bool is_first = begin == segment.begin, is_last = begin + units == segment.end;
  const bool keeps_all = is_first && is_last && units * blocks_per_unit <= kept && kept <= 32;
  for (int row = warp; row < queries * p.heads; row += Config::kConsumers) {
    const int query = p.tile_queries == 1 ? 0 : row / p.heads;
    const int position = segment.view.seqlen_k - segment.view.seqlen_q + segment.first_query + query;
    const Candidates candidates = Candidates(p.rules, position).of_shard(p.rules.shard);
    const auto ranked = [&](int at) {  // the buffer's `at`-th kv_block; kNoCandidate where it does not compete
      const int block = begin * blocks_per_unit + at, first = at << log2_tiles;
      if (first >= units * kUnitTiles || block < candidates.init || block >= candidates.end) return kNoCandidate;
      float score = NAN;
      for (int tile = first; tile < first + (1 << log2_tiles); ++tile) {
        const float4 of_warps = *reinterpret_cast<const float4*>(storage.score_buffer[row][tile]);
        score = fmaxf(score, fmaxf(fmaxf(of_warps.x, of_warps.y), fmaxf(of_warps.z, of_warps.w)));
      }
      return rank_of(score, block);
    };
    Ranked* const to = p.lists.row(segment.range, row, kept) + segment.number * kept;
    if (keeps_all) {
      const Ranked mine = ranked(lane);
      int rank = 0;
      for (int other = 0; other < kept; ++other) {
        const Ranked theirs = __shfl_sync(kFullWarp, mine, other);
        rank += theirs > mine || (theirs == mine && other < lane);
      }
      if (lane < kept) to[rank] = mine;
      continue;
    }
    generic::BestList<Config::kListCapacity> best(storage.lists[row], kept, lane);
    if (!is_first) best.resume(storage.list_sizes[row]);
    for (int first = 0; first < units * blocks_per_unit; first += 32) {
      const Ranked candidate = ranked(first + lane);
      best.offer(candidate != kNoCandidate, candidate);
    }
    if (best.size() > kept || !is_last) best.keep_best();
    if (!is_last) {
      storage.list_sizes[row] = best.size();
      continue;
    }
    __syncwarp();  // candidates of other lanes are read
    for (int i = lane; i < kept; i += 32) to[i] = i < best.size() ? best.at(i) : kNoCandidate;
  }
}

/// Scales the scores of a tile. One that does not count becomes NaN, which loses to every number. first_key: the first
/// of this thread's keys.
template <class Scores>
__device__ __forceinline__ void hide_unseen(Scores& scores, const float (&scale)[2], int first_key, bool all_seen,
                                            const SeenKeys& seen, int heads, int lane) {
  CUTE_UNROLL
  for (int i = 0; i < cute::size(scores); ++i) {
    const int half = i / 2 % 2, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    const bool is_seen = all_seen || first_key + half * 8 < seen.of(column / heads);
    scores(i) = is_seen ? scores(i) * scale[half] : NAN;
  }
}

/// Products of a stage of keys with the query tile, by a warpgroup.
template <class Config>
class KeyProduct {
 public:
  __device__ __forceinline__ explicit KeyProduct(typename Config::Key* q) : q_(q) {}

  /// By all consumers.
  template <int kThreads>
  __device__ __forceinline__ void load_queries(const SelectParams& p, const Segment& segment) const {
    const SequenceView& view = segment.view;
    if constexpr (Config::kIsExact) {
      cute::Tensor smem = cute::make_tensor(cute::make_smem_ptr(q_), typename Config::LayoutQ{});
      const auto store = [&](int row, int channel, const QueryChannels<typename Config::Key>& channels) {
        store_as_widened(smem, row, channel, channels.packed);
      };
      load_index_queries<Config, kThreads>(p, view.q_row, view.seqlen_q, segment.first_query, threadIdx.x, store);
    } else {
      load_index_queries<Config, kThreads>(p, view.q_row, view.seqlen_q, segment.first_query, threadIdx.x, q_, nullptr);
    }
  }

  /// acc = keys q^T
  template <class Accumulator>
  __device__ __forceinline__ void multiply(const char* keys, Accumulator& acc) const {
    using namespace cute;
    if constexpr (Config::kIsExact) {
      CUTE_UNROLL
      for (int m = 0; m < Config::kStageTiles; ++m) multiply_widened(keys, m, acc);
    } else {
      typename Config::Mma mma;
      const auto slice = mma.get_thread_slice(threadIdx.x % 128);
      const auto* const elements = reinterpret_cast<const typename Config::Key*>(keys);
      const Tensor left = slice.partition_fragment_A(make_tensor(make_smem_ptr(elements), typename Config::LayoutK{}));
      const Tensor right = slice.partition_fragment_B(make_tensor(make_smem_ptr(q_), typename Config::LayoutQ{}));
      warpgroup_fence_operand(acc);
      warpgroup_arrive();
      CUTE_UNROLL
      for (int m = 0; m < Config::kStageTiles; ++m) {
        mma.accumulate_ = GMMA::ScaleOut::Zero;
        CUTE_UNROLL
        for (int step = 0; step < size<2>(left); ++step) {
          gemm(mma, left(_, m, step), right(_, 0, step), acc(_, m, 0));
          mma.accumulate_ = GMMA::ScaleOut::One;
        }
      }
      warpgroup_commit_batch();
      warpgroup_wait<0>();
      warpgroup_fence_operand(acc);
    }
  }

 private:
  /// Tile m of a stage. A thread takes channels 4 t to 4 t + 3 of every 16 of a key, which the product has as 2 t,
  /// 2 t + 1 and 2 t + 8, 2 t + 9.
  template <class Accumulator>
  __device__ __forceinline__ void multiply_widened(const char* keys, int m, Accumulator& acc) const {
    using namespace cute;
    typename Config::ExactMma mma;
    const auto slice = mma.get_thread_slice(threadIdx.x % 128);
    const Tensor right = slice.partition_fragment_B(make_tensor(make_smem_ptr(q_), typename Config::LayoutQ{}));
    Tensor left = make_tensor<cutlass::half_t>(partition_shape_A(mma, Shape<Int<kTileKeys>, Int<Config::kDim>>{}));
    Tensor words = recast<std::uint32_t>(left);
    const int lane = threadIdx.x % 32, key = m * kTileKeys + threadIdx.x % 128 / 32 * 16 + lane / 4;
    CUTE_UNROLL
    for (int step = 0; step < Config::kDim / 16; ++step) {
      CUTE_UNROLL
      for (int half = 0; half < 2; ++half) {  // key, and the one 8 after it
        const int at = Config::Tile::offset(key + half * 8, step * 16 + lane % 4 * 4);
        const auto four = *reinterpret_cast<const std::uint32_t*>(keys + at);
        words(step * 4 + half) = from_e4m3<cutlass::half_t>(four);
        words(step * 4 + 2 + half) = from_e4m3<cutlass::half_t, 1>(four);
      }
    }
    Tensor scores = acc(_, m, 0);
    warpgroup_fence_operand(left);
    warpgroup_fence_operand(scores);
    warpgroup_arrive();
    mma.accumulate_ = GMMA::ScaleOut::Zero;
    CUTE_UNROLL
    for (int step = 0; step < size<2>(left); ++step) {
      gemm(mma, left(_, 0, step), right(_, 0, step), scores);
      mma.accumulate_ = GMMA::ScaleOut::One;
    }
    warpgroup_commit_batch();
    warpgroup_wait<0>();
    warpgroup_fence_operand(scores);
  }

  typename Config::Key* q_;
};

template <class Config>
__device__ __forceinline__ void consume_index_keys(const SelectParams& p, typename Config::Storage& storage,
                                                   TileScheduler& scheduler, Segment& segment, int warp, int lane) {
  using namespace cute;
  constexpr int kBufferUnits = Config::kBufferTiles / kUnitTiles;
  const auto sync_consumers = [] { sync(SelectBarrier::kConsumers, 32 * Config::kConsumers); };
  const int first_key = warp % 4 * 16 + lane / 4;  // of this thread, and the one 8 after it
  const KeyProduct<Config> product(storage.q);
  Tensor acc = partition_fragment_C(typename Config::Mma{}, Shape<Int<Config::kStageKeys>, Int<Config::kRows>>{});

  bool is_begin = true;
  int next = warp / 4;  // stage of this warpgroup, counted from the start of the buffer
  PipelineState<Config::kStages> ring = PipelineState<Config::kStages>{}.after(next);
  for (bool is_more = segment.exists(); is_more; is_more = scheduler.next(segment)) {
    const SequenceView& view = segment.view;
    product.template load_queries<32 * Config::kConsumers>(p, segment);
    cutlass::arch::fence_view_async_shared();
    sync_consumers();
    const int first_position = view.seqlen_k - view.seqlen_q + segment.first_query;
    const int seen_by_first = p.rules.shard.held_keys(first_position + 1, p.rules.block_size);
    for (int begin = segment.begin; begin < segment.end; begin += kBufferUnits) {
      const int units = min(kBufferUnits, segment.end - begin), stages = units * Config::kUnitStages;
      for (; next < stages; next += Config::kGroups, ring.advance(Config::kGroups)) {
        FullBarrier::wait(&storage.full[ring.stage], ring.phase);
#ifdef OPENMSA_STAMPS
        if (threadIdx.x == 0) { const unsigned n = g_launch[0][blockIdx.x]; if (is_begin) STAMP(0, n, 2); STAMP(0, n, 3); is_begin = false; }
#endif
        product.multiply(storage.k[ring.stage], acc);
        const bool has_token_scales = Config::kIsQuantized && p.index_k_scale.is_per_token();
        const bool is_scaled = has_token_scales || (Config::kIsQuantized && p.index_block_scale.exists());
        float scale[Config::kStageTiles][2];
        CUTE_UNROLL
        for (int i = 0; i < 2 * Config::kStageTiles; ++i) {
          const int tile_key = i / 2 * kTileKeys;
          const int at = has_token_scales ? tile_key + first_key + i % 2 * 8 : tile_key >> log2_of(p.rules.block_size);
          scale[i / 2][i % 2] = is_scaled ? storage.k_scale[ring.stage][at] : 1;
        }
        __syncwarp();
        if (lane == 0) EmptyBarrier::arrive(&storage.empty[ring.stage]);

        CUTE_UNROLL
        for (int m = 0; m < Config::kStageTiles; ++m) {
          const int tile = next * Config::kStageTiles + m;  // of the buffer
          Tensor scores = acc(_, m, 0);
          const int tile_key = begin * kUnitKeys + tile * kTileKeys;
          const bool all_seen = tile_key + kTileKeys <= seen_by_first;
          if (is_scaled || !all_seen) {
            SeenKeys seen{};
            if (!all_seen) seen = p.rules.shard.seen_keys(first_position, p.rules.block_size);
            hide_unseen(scores, scale[m], tile_key + first_key, all_seen, seen, p.heads, lane);
          }
          store_maxima<Config>(
              scores, [&](int column) -> float& { return storage.score_buffer[column][tile][warp % 4]; }, lane);
        }
      }
      next -= stages;
      sync_consumers();
      take_scores<Config>(p, storage, segment, scheduler.kept(), begin, units, warp, lane);
      sync_consumers();
    }
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kMinCtas)
    select_kernel(const __grid_constant__ SelectParams p, const __grid_constant__ CUtensorMap map_k) {
  extern __shared__ char raw[];
  STAMP_N(0);
  if (threadIdx.x == 0) STAMP(0, stamp_n, 0);
  auto& storage = shared_storage<typename Config::Storage>(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {  // init_barriers, written out: beside a prefetch in a closure other code comes out
    cute::prefetch_tma_descriptor(&map_k);
    init_ring(storage.full, storage.empty, 4, p.index_k_scale.is_per_token() || p.index_block_scale.exists() ? 33 : 1);
    cutlass::arch::fence_barrier_init();
  }
  // Where this CTA begins follows from the lengths, which have usually been written long before.
  const bool begins_early = !is_indexed(p);
  if (begins_early && warp == 0) storage.lengths[lane] = lane_sequence(p, lane);
  __syncthreads();
  if (!begins_early) wait_for_earlier_kernels();
  TileScheduler scheduler(p, storage.lengths[lane], lane);
  Segment segment = scheduler.first();
  if (begins_early) wait_for_earlier_kernels();
  if (threadIdx.x == 0) STAMP(0, stamp_n, 1);
  let_next_kernel_start();
  const bool is_producer = warp == Config::kConsumers;
  PageWindow pages(p.batch, 0, 0, lane);
  if (is_producer) pages = pages_of(p, segment, lane);  // while the lengths are looked at again
  if (begins_early) {
    SequenceView current{};
    if (warp == 0) current = lane_sequence(p, lane);
    if (__syncthreads_or(warp == 0 && !(current == storage.lengths[lane]))) {
      if (warp == 0) storage.lengths[lane] = current;
      __syncthreads();
      scheduler = TileScheduler(p, storage.lengths[lane], lane);
      segment = scheduler.first();
      if (is_producer) pages = pages_of(p, segment, lane);
    }
  }
  if (is_producer) {
    produce_index_keys<Config>(p, map_k, storage, scheduler, segment, pages, lane);
  } else {
    if (threadIdx.x == 0) STAMP(0, stamp_n, 5);
    consume_index_keys<Config>(p, storage, scheduler, segment, warp, lane);
    if (threadIdx.x == 0) { STAMP(0, stamp_n, 4); STAMP_END(0); }
  }
}

}  // namespace openmsa::cuda::sm90::decode
