// Log-sum-exp of the student over each kv_block that a row visits: what row_stats puts together.
//
// A work item's index keys are loaded once; each of two warpgroups runs tiles of 64 rows of index_q past them. Rows lie
// anywhere: all threads of a warpgroup copy the next tile's rows, 16 bytes at a time, while they work on this one's.
// Two CTAs share an SM, so that one works while the other begins an item.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/generic/training/kl/partial_place.cuh"
#include "cuda/sm90/ptx/cp_async.cuh"
#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/causal_mask.cuh"
#include "cuda/sm90/tile/load_keys.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/softmax.cuh"
#include "cuda/sm90/training/kl/params.h"

namespace openmsa::cuda::sm90::training::kl {

template <class Element, int kDim, int kBlock>
struct IndexLseConfig {
  using Tile = AttentionTile<Element, kDim, kBlock>;
  static constexpr int kWarpgroups = 2;
  static constexpr int kThreads = 128 * kWarpgroups;
  static constexpr int kChunks = kDim / 8;                               // of 16 bytes, of a row
  static constexpr int kRowsPerThread = kWarpgroupRows * kChunks / 128;  // of which a thread copies one chunk

  struct Storage {
    alignas(1024) Element k[kBlock * kDim];
    alignas(1024) Element q[kWarpgroups][2][kWarpgroupRows * kDim];
    std::int32_t number;  // of the work item
    std::uint64_t full;   // k
  };
};

/// Rows of index_q of every second tile of an item, copied by a warpgroup into two stages in turn.
template <class Config>
class IndexRows {
  using Element = typename Config::Tile::Element;
  static constexpr int kDim = Config::Tile::kDim;

 public:
  __device__ __forceinline__ IndexRows(const Params& p, const generic::ListItem& item, int first, int thread)
      : p_(p), item_(item), thread_(thread) {
    find(first);
  }

  /// Starts the copies of the tile that was found before into `to`, and finds the rows of the one that begins at `next`.
  __device__ __forceinline__ void copy(Element* to, int next) {
    const auto* const rows = static_cast<const Element*>(p_.index_q.data) + item_.head * p_.index_q.strides[1];
    const int chunk = thread_ % Config::kChunks, first_row = thread_ / Config::kChunks;
#pragma unroll
    for (int i = 0; i < Config::kRowsPerThread; ++i) {
      const int row = first_row + i * (128 / Config::kChunks);
      const Element* const from = rows + max(rows_[i], 0) * p_.index_q.strides[0] + chunk * 8;
      async_copy_16(to + Config::Tile::swizzled(kWarpgroupRows, row, chunk * 8), from, rows_[i] >= 0);
    }
    async_commit();
    find(next);
  }

 private:
  __device__ __forceinline__ void find(int first) {
#pragma unroll
    for (int i = 0; i < Config::kRowsPerThread; ++i) {
      const int at = first + thread_ / Config::kChunks + i * (128 / Config::kChunks);
      rows_[i] = p_.work.visited_row(item_, at);
    }
  }

  const Params& p_;
  const generic::ListItem& item_;
  const int thread_;
  std::int32_t rows_[Config::kRowsPerThread];  // -1: past the end of the item
};

/// A tile of 64 rows of the item from visit `first` on.
template <class Config>
__device__ __forceinline__ void index_lse_tile(const Params& p, const generic::ListItem& item, const SequenceView& view,
                                               int first, const typename Config::Tile::Element* q,
                                               const typename Config::Tile::Element* k, int thread) {
  using namespace cute;
  using Tile = typename Config::Tile;
  const int lane = thread % 32;
  typename Tile::Scores s;
  Tile::start_scores(q, k, s, thread);
  PartialLse* places[2];
  int last[2];
  for (int i = 0; i < 2; ++i) {
    const int at = first + thread / 32 * 16 + i * 8 + lane / 4;
    const std::int32_t row = p.work.visited_row(item, at);
    places[i] = partial_place(p, item, row, lane);
    const int position = view.seqlen_k - view.seqlen_q + row - view.q_row;
    last[i] = row < 0 ? Tile::kBlock : min(position - item.block * p.batch.block_size, p.batch.block_size - 1);
  }
  warpgroup_wait<0>();
  warpgroup_fence_operand(s);
  hide_later_keys<Tile>(s, last, lane);
  Softmax softmax;
  float alpha[2];
  softmax.template update<Tile>(s, p.index_scale_log2, alpha);
  for (int i = 0; i < 2; ++i) {
    const float sum = quad_sum(softmax.sum[i]);
    if (places[i] != nullptr) *places[i] = {softmax.max[i], sum};
  }
}

template <class Config>
__device__ __forceinline__ void index_lse_item(const Params& p, const generic::ListItem& item,
                                               typename Config::Storage& storage, std::uint32_t phase) {
  const int warpgroup = threadIdx.x / 128, thread = threadIdx.x % 128;
  constexpr int kStep = Config::kWarpgroups * kWarpgroupRows;
  const SequenceView view = p.batch.sequence(item.sequence);
  int first = warpgroup * kWarpgroupRows, stage = 0;
  IndexRows<Config> rows(p, item, first, thread);
  rows.copy(storage.q[warpgroup][0], first + kStep);
  FullBarrier::wait(&storage.full, phase);
  for (; first < item.count; first += kStep, stage ^= 1) {
    rows.copy(storage.q[warpgroup][stage ^ 1], first + 2 * kStep);
    async_wait<1>();
    cutlass::arch::fence_view_async_shared();
    cutlass::arch::NamedBarrier::sync(128, 1 + warpgroup);
    index_lse_tile<Config>(p, item, view, first, storage.q[warpgroup][stage], storage.k, thread);
    cutlass::arch::NamedBarrier::sync(128, 1 + warpgroup);  // all of it is done with this stage
  }
  async_wait<0>();
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 2)
    index_lse_kernel(const Params p, const __grid_constant__ CUtensorMap map_index_k) {
  using Tile = typename Config::Tile;
  extern __shared__ char raw[];
  auto& storage = shared_storage<typename Config::Storage>(raw);
  init_barriers([&] { FullBarrier::init(&storage.full, 1); });
  wait_for_earlier_kernels();

  const int num_items = *p.work.num_items;
  for (std::uint32_t phase = 0;; phase ^= 1) {
    if (threadIdx.x == 0) storage.number = atomicAdd(p.next_item + kIndexLseItem, 1);
    __syncthreads();
    const int number = storage.number;
    if (number >= num_items) return;
    const generic::ListItem item = p.work.items[number];
    if (threadIdx.x == 0) {
      load_keys<typename Tile::Element, Tile::kDim, Tile::kBlock>(
          map_index_k, p.batch, item.sequence, p.batch.sequence(item.sequence), item.block * p.batch.block_size,
          {Tile::kBlock, 0}, storage.k, &storage.full);
    }
    index_lse_item<Config>(p, item, storage, phase);
    __syncthreads();
  }
}

}  // namespace openmsa::cuda::sm90::training::kl
