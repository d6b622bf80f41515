// The teacher's probabilities of every visit, where no gradient of attention is computed that knows them: each work item
// is a kv_block and the query rows of one KV head that visit it. Its keys stay in registers; tiles of 64 rows, the query
// heads of 64 / group_size queries, stream past. Two consumer warpgroups take 64 keys each and never meet:
//
//   s^T[64 keys][64 rows] = k q^T      k in registers, q from shared memory
//   P  [64 keys][queries] = mean over a query's heads of exp2(s * scale_log2 - log2(e) lse), in fp16 to memory
//
//   barrier        arrivals                         waited on by          guards
//   item_full[i]   warp 0                           warps 1 and 2, cons.  the item
//   item_empty[i]  warps 1 and 2, consumer warps    warp 0                all have read it
//   k_full         warp 0 + bytes                   consumers             k of the item
//   k_empty        consumer warps                   warp 0                k is in registers
//   rows_full[i]   warp 1 + bytes, copies of warp 2 consumers             q and log-sum-exps of a tile
//   rows_empty[i]  consumer warps                   warps 1 and 2         its product is done
//
// The product of the next tile runs beside the exponentials of this one. Per tile (head_dim 128): products 512 cycles of
// the tensor cores, 8192 exponentials 512 cycles, 16 KB of q from the L2 cache, about 700 cycles of an SM's share of it.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/warp_mma.cuh"
#include "cuda/sm90/training/backward_tile.cuh"
#include "cuda/sm90/training/group_sums.cuh"
#include "cuda/sm90/training/items.cuh"
#include "cuda/sm90/training/kl/params.h"

namespace openmsa::cuda::sm90::training::kl {

template <class Element_, int kDim_>
struct TeacherTile {
  using Element = Element_;
  static constexpr int kDim = kDim_;
  static constexpr int kHalves = kDim / kPanelChannels;
  static constexpr int kKeys = kTileKeys / 2;  // of a warpgroup
  using Rows = typename BackwardTile<Element, kDim>::LayoutRows;
  template <int kRows, int kColumns>
  using Size = cute::Shape<cute::Int<kRows>, cute::Int<kColumns>>;
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<Element, Element, float,
                                 cute::Shape<cute::Int<kKeys>, cute::Int<kTileRows>, cute::_16>, cute::GMMA::Major::K,
                                 cute::GMMA::Major::K>()));
  using Scores = decltype(cute::partition_fragment_C(Mma{}, Size<kKeys, kTileRows>{}));
  using Keys = LeftOperand<Element, kDim>;

  /// The warpgroup's keys as the left operand of s^T.
  __device__ static void load_keys(const Element* keys, Keys& operand, int consumer, int thread) {
    auto* const registers = reinterpret_cast<std::uint32_t*>(&operand(0));
    CUTE_UNROLL
    for (int i = 0; i < kDim / 16; ++i) {
      std::uint32_t four[4];
      SwizzledTile<kTileKeys, kDim * 2>::load(reinterpret_cast<const char*>(keys), consumer * kKeys + thread / 32 * 16,
                                              i * kStepBytes, thread % 32, four);
      CUTE_UNROLL
      for (int j = 0; j < 4; ++j) registers[4 * i + j] = four[j];
    }
  }

  __device__ static void start_scores(const Keys& keys, const Element* rows, Scores& s, int thread) {
    using namespace cute;
    const auto slice = Mma{}.get_thread_slice(thread);
    start_product(Mma{}, keys, slice.partition_fragment_B(make_tensor(make_smem_ptr(rows), Rows{})), s, false);
  }
};

template <class Element, int kDim>
struct TeacherConfig {
  using Tile = TeacherTile<Element, kDim>;
  static constexpr int kConsumerWarps = 8;
  static constexpr int kThreads = 32 * kConsumerWarps + 128;
  static constexpr int kStages = 6, kItemStages = 2;

  struct Storage {
    alignas(1024) Element k[kTileKeys * kDim];
    alignas(1024) Element q[kStages][kTileRows * kDim];
    alignas(16) float lse[kStages][kTileRows];
    generic::ListItem items[kItemStages];  // count 0: no more
    std::uint64_t item_full[kItemStages], item_empty[kItemStages], k_full[1], k_empty[1];
    std::uint64_t rows_full[kStages], rows_empty[kStages];
  };
};

/// Takes items and loads their keys; one thread.
template <class Config>
__device__ __forceinline__ void produce_teacher_items(const Params& p, const CUtensorMap& map_k,
                                                      typename Config::Storage& storage) {
  PipelineState<1> keys;
  const auto as_it_is = [](const generic::ListItem& item, int) { return item; };
  std::int32_t* const next = p.next_item + kTeacherItem;
  take_items(p.batch, p.work, next, storage, as_it_is, [&](const generic::ListItem& item, int row) {
    EmptyBarrier::wait(storage.k_empty, keys.phase ^ 1);
    load_key_panels<Config::Tile::kDim>(map_k, item.head, row, storage.k, storage.k_full);
    keys.advance();
  });
}

/// Query rows of an item's visits, 64 at a time: the next ones are on their way while a warp asks for these.
class VisitedRows {
 public:
  static constexpr int kWindow = 64;  // a multiple of every tile's queries

  __device__ __forceinline__ VisitedRows(const Params& p, const generic::ListItem& item, int lane)
      : p_(p), item_(item), lane_(lane) {
    load(0, now_);
    load(kWindow, next_);
  }

  /// Query row of visit `begin` + `offset`, -1: there is none; for a whole warp, each lane with its offset into the
  /// window of `begin`.
  __device__ __forceinline__ int row(int begin, int offset) const {
    const int at = begin % kWindow + offset;
    const int low = __shfl_sync(kFullWarp, now_[0], at % 32), high = __shfl_sync(kFullWarp, now_[1], at % 32);
    return at < 32 ? low : high;
  }

  /// After the tile before `begin`.
  __device__ __forceinline__ void advance(int begin) {
    if (begin % kWindow != 0) return;
    now_[0] = next_[0];
    now_[1] = next_[1];
    load(begin + kWindow, next_);
  }

 private:
  __device__ __forceinline__ void load(int begin, int (&rows)[2]) const {
    for (int i = 0; i < 2; ++i) rows[i] = p_.work.visited_row(item_, begin + lane_ + 32 * i);
  }

  const Params& p_;
  const generic::ListItem& item_;
  const int lane_;
  int now_[2], next_[2];
};

/// q of all tiles; a warp, with two queries per lane at most.
template <class Config>
__device__ __forceinline__ void produce_teacher_rows(const Params& p, const CUtensorMap& map_q,
                                                     typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  const int lane = threadIdx.x % 32, shift = p.log2_group_size, capacity = kTileRows >> shift;
  PipelineState<Config::kStages> ring;
  for_each_item(storage, [&](const generic::ListItem& item) {
    VisitedRows rows(p, item, lane);
    for (int begin = 0; begin < item.count; begin += capacity, ring.advance(), rows.advance(begin)) {
      std::uint64_t* const full = &storage.rows_full[ring.stage];
      EmptyBarrier::wait(&storage.rows_empty[ring.stage], ring.phase ^ 1);
      if (lane == 0) {
        FullBarrier::arrive_and_expect_tx(full, kTileRows * Tile::kDim * sizeof(typename Tile::Element));
      }
      __syncwarp();
      for (int x = lane; x < capacity + lane; x += 32) {
        const int row = rows.row(begin, x % kTileRows), token = row < 0 ? p.batch.total_q : row;
        if (x < capacity) copy_query<Tile>(map_q, full, storage.q[ring.stage], x, shift, item.head, token);
      }
    }
  });
}

/// Log-sum-exps of all tiles' rows; a warp, with two rows per lane. Rows that are not there get any.
template <class Config>
__device__ __forceinline__ void produce_teacher_lse(const Params& p, typename Config::Storage& storage) {
  const int lane = threadIdx.x % 32, shift = p.log2_group_size, capacity = kTileRows >> shift;
  PipelineState<Config::kStages> ring;
  for_each_item(storage, [&](const generic::ListItem& item) {
    VisitedRows rows(p, item, lane);
    for (int begin = 0; begin < item.count; begin += capacity, ring.advance(), rows.advance(begin)) {
      EmptyBarrier::wait(&storage.rows_empty[ring.stage], ring.phase ^ 1);
      for (int i = 0; i < 2; ++i) {
        const int at = lane + 32 * i, head = (item.head << shift) + (at & ((1 << shift) - 1));
        const int row = rows.row(begin, at >> shift);
        if (row >= 0) async_copy_4(&storage.lse[ring.stage][at], p.lse.data + p.lse.place(row, head));
      }
      async_arrive(&storage.rows_full[ring.stage]);
    }
  });
}

/// A consumer warpgroup's tiles of an item.
template <class Config>
struct TeacherConsumer {
  using Tile = typename Config::Tile;
  using Scores = typename Tile::Scores;

  const Params& p;
  typename Config::Storage& storage;
  const int consumer, thread, lane;
  typename Tile::Keys k;
  PipelineState<1> keys;
  PipelineState<Config::kStages> started, finished;

  __device__ __forceinline__ TeacherConsumer(const Params& p, typename Config::Storage& storage, int consumer,
                                             int thread)
      : p(p), storage(storage), consumer(consumer), thread(thread), lane(thread % 32) {}

  /// A tile under way: its scores, and its rows' log-sum-exps, which take long to load beside a product.
  struct Started {
    Scores s;
    float2 lse[kTileRows / 8];  // of the thread's columns
  };

  __device__ __forceinline__ void start(Started& tile) {
    FullBarrier::wait(&storage.rows_full[started.stage], started.phase);
    const float* const lse = storage.lse[started.stage];
    CUTE_UNROLL
    for (int n = 0; n < kTileRows / 8; ++n) {
      tile.lse[n] = *reinterpret_cast<const float2*>(&lse[8 * n + 2 * (lane % 4)]);
    }
    Tile::start_scores(k, storage.q[started.stage], tile.s, thread);
    started.advance();
  }

  /// exp2(s * scale_log2 - log2(e) lse) of a tile whose product has ended.
  __device__ __forceinline__ Scores probabilities(Started& tile) {
    using namespace cute;
    warpgroup_fence_operand(tile.s);
    __syncwarp();
    if (lane == 0) EmptyBarrier::arrive(&storage.rows_empty[finished.stage]);
    finished.advance();
    Scores result;
    CUTE_UNROLL
    for (int n = 0; n < kTileRows / 8; ++n) {
      const float shift[2] = {tile.lse[n].x * -static_cast<float>(kLog2E), tile.lse[n].y * -static_cast<float>(kLog2E)};
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const auto at = make_coord(i % 2, i / 2, n);
        result(at, 0, 0) = exp2_approx(fmaf(tile.s(at, 0, 0), p.scale_log2, shift[i % 2]));
      }
    }
    return result;
  }

  __device__ __forceinline__ void run(const generic::ListItem& item) {
    using namespace cute;
    FullBarrier::wait(storage.k_full, keys.phase);
    Tile::load_keys(storage.k, k, consumer, thread);
    __syncwarp();
    if (lane == 0) EmptyBarrier::arrive(storage.k_empty);
    keys.advance();

    with_group_sums<0>(p.log2_group_size, [&](auto sums) { run_tiles<decltype(sums)>(item); });
  }

  /// Sums that lanes exchange go on, and to memory, beside the exponentials of the next tile.
  template <class Sums>
  __device__ __forceinline__ void run_tiles(const generic::ListItem& item) {
    using namespace cute;
    const int capacity = kTileRows >> p.log2_group_size;
    const std::int64_t stride = std::int64_t{p.teacher.stride()} * kTileKeys, step = capacity * stride;
    std::uint16_t* to = p.teacher.data + p.teacher.first_visit(p.work, item) * kTileKeys - step +
                        key_pair(consumer * Tile::kKeys + thread / 32 * 16 + lane / 4);  // of the tile before
    // Without branches around products: the compiler has to see which of them are under way.
    Started even, odd;
    Sums before;
    int left = item.count, before_count = 0;  // visits; queries of the tile before, 0: there is none
    const auto work = [&](Started& tile) {
      Sums now(probabilities(tile));
      if constexpr (Sums::kExchanges) {
        before.store(to, stride, before_count, lane);
        before = now;
        before_count = left;
      } else {
        now.store(to + step, stride, left, lane);
      }
      to += step;
      left -= capacity;
    };
    start(even);
    while (left > 2 * capacity) {
      start(odd);
      warpgroup_wait<1>();
      work(even);
      start(even);
      warpgroup_wait<1>();
      work(odd);
    }
    if (left > capacity) {
      start(odd);
      warpgroup_wait<1>();
      work(even);
      warpgroup_wait<0>();
      work(odd);
    } else {
      warpgroup_wait<0>();
      work(even);
    }
    if constexpr (Sums::kExchanges) before.store(to, stride, before_count, lane);
  }
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    teacher_kernel(const Params p, const __grid_constant__ CUtensorMap map_q,
                   const __grid_constant__ CUtensorMap map_k) {
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  init_barriers([&] {
    init_ring(storage.item_full, storage.item_empty, Config::kConsumerWarps + 2);
    init_ring(storage.k_full, storage.k_empty, Config::kConsumerWarps);
    init_ring(storage.rows_full, storage.rows_empty, Config::kConsumerWarps, 1 + 32);
  });
  wait_for_earlier_kernels();

  // 64512 registers of the CTA: 40 x 128 for the producers, 232 x 256 for the consumers.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<40>();
    const int warp = threadIdx.x / 32;
    if (threadIdx.x == 0) produce_teacher_items<Config>(p, map_k, storage);
    if (warp == 1) produce_teacher_rows<Config>(p, map_q, storage);
    if (warp == 2) produce_teacher_lse<Config>(p, storage);
  } else {
    cutlass::arch::warpgroup_reg_alloc<232>();
    const int thread = thread_index();
    TeacherConsumer<Config> consumer(p, storage, thread / 128 - 1, thread % 128);
    for_each_item(storage, [&](const generic::ListItem& item) { consumer.run(item); });
  }
}

}  // namespace openmsa::cuda::sm90::training::kl
