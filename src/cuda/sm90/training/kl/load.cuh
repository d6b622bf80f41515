// Producers of kv_outer.cuh: items with their keys, and steps: rows of index_q with what is known of them.
#pragma once

#include "cuda/sm90/ptx/cp_async.cuh"
#include "cuda/sm90/training/kl/storage.cuh"

namespace openmsa::cuda::sm90::training::kl {

/// A query of a step as its lane knows it.
struct StepQuery {
  std::int32_t row;    // -1: none
  std::int32_t place;  //
  RowStats stats;

  __device__ __forceinline__ StepQuery(const Params& p, const WorkItem& item, std::int32_t row)
      : row(row), place(row < 0 ? 0 : static_cast<std::int32_t>(p.work.place(item.head, row))), stats{INFINITY, 0, 1} {
    if (row >= 0) stats = p.stats[place];
  }
  /// Whether the row has something to add; NaN too.
  __device__ __forceinline__ bool contributes() const { return row >= 0 && stats.weight != 0; }
  /// Whether index_q may meet gradients of 0: a NaN there would not stay with the keys that the row sees. Those get
  /// theirs from lse2.
  __device__ __forceinline__ bool is_clean() const { return contributes() && isfinite(stats.lse2); }
};

/// Starts the copies of a step's rows of index_q; rows that are not clean become zeros.
template <class Config>
__device__ __forceinline__ void copy_index_rows(const Params& p, const WorkItem& item, const StepQuery& query,
                                                typename Config::Tile::Element* to, int lane) {
  using Tile = typename Config::Tile;
  using Element = typename Tile::Element;
  constexpr int kChunks = Tile::kIndexDim / 8;  // of 16 bytes
  const auto* const rows = static_cast<const Element*>(p.index_q.data) + item.head * p.index_q.strides[1];
  const std::int32_t own = query.is_clean() ? query.row : -1;
#pragma unroll 4  // few registers
  for (int i = 0; i < kStepQueries * kChunks / 32; ++i) {
    const int at = i * 32 + lane, x = at / kChunks, channel = at % kChunks * 8;
    const std::int32_t row = __shfl_sync(kFullWarp, own, x);
    async_copy_16(to + Tile::swizzled(kStepQueries, x, channel), rows + max(row, 0) * p.index_q.strides[0] + channel,
                  row >= 0);
  }
}

/// Takes items, and loads their index_k; one thread.
template <class Config>
__device__ __forceinline__ void produce_items(const Params& p, const CUtensorMap& map_index_k,
                                              typename Config::Storage& storage) {
  PipelineState<Config::kIndexKeyStages> keys;
  const auto numbered = [](const generic::ListItem& item, int number) { return WorkItem(item, number); };
  take_items(p.batch, p.work, p.next_item + kStepsItem, storage, numbered, [&](const WorkItem&, int row) {
    EmptyBarrier::wait(&storage.index_k_empty[keys.stage], keys.phase ^ 1);
    load_key_panels<Config::Tile::kIndexDim>(map_index_k, 0, row, storage.index_k[keys.stage],
                                             &storage.index_k_full[keys.stage]);
    keys.advance();
  });
}

/// Rows of index_q and StepRows of every second step of all items together, from step `first` on; a warp, of which lane i
/// looks after query i of a step. What is known of a step's queries is read a step ahead.
template <class Config>
__device__ __forceinline__ void produce_steps(const Params& p, typename Config::Storage& storage, int first) {
  constexpr int kStride = Config::kStepWarps * kStepQueries;
  const int lane = threadIdx.x % 32;
  PipelineState<Config::kStepStages> ring = PipelineState<Config::kStepStages>{}.after(first);
  int begin = first * kStepQueries;  // of the next step, in visits of the item
  for_each_item(storage, [&](const WorkItem& item) {
    const SequenceView view = p.batch.sequence(item.sequence);
    const int position = view.seqlen_k - view.seqlen_q - view.q_row - item.block * p.batch.block_size;  // of row 0
    const auto row_of = [&](int visit) { return p.work.visited_row(item, visit + lane); };
    StepQuery query(p, item, row_of(begin));
    std::int32_t row = row_of(begin + kStride);
    for (; begin < item.count; begin += kStride, ring.advance(Config::kStepWarps)) {
      const StepQuery next(p, item, row);
      row = row_of(begin + 2 * kStride);
      EmptyBarrier::wait(&storage.step_empty[ring.stage], ring.phase ^ 1);
      StepRows& rows = storage.rows[ring.stage];
      rows.lse2[lane] = query.stats.lse2;
      rows.weight[lane] = query.stats.weight;
      rows.to_fixed[lane] = kFixedOne / Config::kGradientScale / query.stats.bound;
      const int keys = query.contributes() ? min(position + query.row + 1, p.batch.block_size) : 0;
      rows.keys[lane] = keys;
      rows.is_masked = __any_sync(kFullWarp, keys < kTileKeys);
      copy_index_rows<Config>(p, item, query, storage.index_q[ring.stage], lane);
      async_arrive(&storage.step_full[ring.stage]);
      EmptyBarrier::arrive(&storage.step_full[ring.stage]);
      query = next;
    }
    begin -= (item.count + kStepQueries - 1) / kStepQueries * kStepQueries;
  });
}

}  // namespace openmsa::cuda::sm90::training::kl
