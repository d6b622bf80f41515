// Producers of kv_outer.cuh: items with their keys, rows of q, and steps: rows of index_q with what is known of them.
#pragma once

#include "cuda/sm90/ptx/async_copy.cuh"
#include "cuda/sm90/ptx/cp_async.cuh"
#include "cuda/sm90/training/kl/storage.cuh"
#include "cuda/sm90/training/kl/teacher.cuh"

namespace openmsa::cuda::sm90::training::kl {

inline constexpr auto kKeepInL2 = static_cast<std::uint64_t>(CacheHintSm90::EVICT_NORMAL);

/// Loads keys of one tensor: panels of 64 channels, one after the other.
template <int kDim, class Element>
__device__ __forceinline__ void load_panels(const CUtensorMap& map, int head, int row, Element* to,
                                            std::uint64_t* full) {
  FullBarrier::arrive_and_expect_tx(full, kTileKeys * kDim * static_cast<int>(sizeof(Element)));
  for (int channel = 0; channel < kDim; channel += kPanelChannels) {
    cute::SM90_TMA_LOAD_4D::copy(&map, full, kKeepInL2, to + channel * kTileKeys, channel, head, row, 0);
  }
}

/// Takes items, and loads k and index_k; one thread.
template <class Config>
__device__ __forceinline__ void produce_items(const Params& p, const CUtensorMap& map_k, const CUtensorMap& map_index_k,
                                              typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  const int num_items = *p.work.num_items;
  PipelineState<Config::kItemStages> ring;
  PipelineState<Config::kIndexKeyStages> index_keys;
  PipelineState<1> keys;
  for (;; ring.advance(), keys.advance(), index_keys.advance()) {
    const int number = atomicAdd(p.next_item + 1, 1);
    const WorkItem item(number < num_items ? p.work.items[number] : generic::ListItem{}, number);
    EmptyBarrier::wait(&storage.item_empty[ring.stage], ring.phase ^ 1);
    storage.items[ring.stage] = item;
    EmptyBarrier::arrive(&storage.item_full[ring.stage]);
    if (item.count == 0) return;
    const int row = p.batch.sequence(item.sequence).k_row + item.block * p.batch.block_size;
    EmptyBarrier::wait(&storage.index_k_empty[index_keys.stage], index_keys.phase ^ 1);
    load_panels<Tile::kIndexDim>(map_index_k, 0, row, storage.index_k[index_keys.stage],
                                 &storage.index_k_full[index_keys.stage]);
    EmptyBarrier::wait(storage.k_empty, keys.phase ^ 1);
    load_panels<Tile::kDim>(map_k, item.head, row, storage.k, storage.k_full);
  }
}

/// Rows of q of all steps, chunk by chunk; a warp, of which lane i < 16 loads query i of a step: one copy, or one per
/// half where a query has less than 8 rows.
template <class Config>
__device__ __forceinline__ void produce_rows(const Params& p, const CUtensorMap& map_q,
                                             typename Config::Storage& storage) {
  using Tile = typename Config::Tile;
  const int lane = threadIdx.x % 32, group = 1 << p.log2_group_size, copies = group < 8 ? Tile::kHalves : 1;
  const int row_bytes = group * Tile::kDim * static_cast<int>(sizeof(typename Tile::Element));
  const TeacherPlace own = teacher_place<Config::kChunks>(lane % kStepQueries);
  PipelineState<Config::kRowStages> ring;
  for_each_item(storage, [&](const WorkItem& item) {
    const auto row_of = [&](int begin) { return lane < kStepQueries ? p.work.visited_row(item, begin + lane) : -1; };
    const int head = item.head * group;
    int q_row = row_of(0);
    for (int begin = 0; begin < item.count; begin += kStepQueries) {
      const int next = row_of(begin + kStepQueries);
      for (int chunk = 0; chunk < Config::kChunks; ++chunk, ring.advance()) {
        const bool loads = q_row >= 0 && own.chunk == chunk;
        const int count = __popc(__ballot_sync(kFullWarp, loads));
        std::uint64_t* const full = &storage.q_full[ring.stage];
        EmptyBarrier::wait(&storage.q_empty[ring.stage], ring.phase ^ 1);
        if (lane == 0) FullBarrier::arrive_and_expect_tx(full, count * row_bytes);
        __syncwarp();
        for (int h = 0; loads && h < copies; ++h) {
          const int at = (own.row / 8 * Tile::kHalves + h) * 8 * kPanelChannels + own.row % 8 * kPanelChannels;
          cute::SM90_TMA_LOAD_5D::copy(&map_q, full, kKeepInL2, &storage.q[ring.stage][at], 0, head % 8, h, head / 8,
                                       q_row);
        }
      }
      q_row = next;
    }
  });
}

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

/// Starts the copies of 16 rows of index_q; rows that are not clean become zeros.
template <class Config>
__device__ __forceinline__ void copy_index_rows(const Params& p, const WorkItem& item, const StepQuery& query,
                                                typename Config::Tile::Element* to, int lane) {
  using Tile = typename Config::Tile;
  using Element = typename Tile::Element;
  constexpr int kChunks = Tile::kIndexDim / 8;  // of 16 bytes
  const auto* const rows = static_cast<const Element*>(p.index_q.data) + item.head * p.index_q.strides[1];
  const std::int32_t own = query.is_clean() ? query.row : -1;
#pragma unroll 1  // few registers
  for (int i = 0; i < kStepQueries * kChunks / 32; ++i) {
    const int at = i * 32 + lane, x = at / kChunks, channel = at % kChunks * 8;
    const std::int32_t row = __shfl_sync(kFullWarp, own, x);
    async_copy_16(to + Tile::swizzled(kStepQueries, x, channel), rows + max(row, 0) * p.index_q.strides[0] + channel,
                  row >= 0);
  }
}

/// Starts the copies of the teacher's log-sum-exps to where the rows of the heads lie.
template <class Config>
__device__ __forceinline__ void copy_teacher_lse(const Params& p, const StepQuery& query, float* to, int lane) {
  const int group = 1 << p.log2_group_size, width = min(group, 4), pieces = group / width;
  for (int first = 0; first < kStepQueries * pieces; first += 32) {
    const int i = first + lane, x = min(i / pieces, kStepQueries - 1), piece = i % pieces * width;
    const bool exists = __shfl_sync(kFullWarp, query.row, x) >= 0;
    const int place = __shfl_sync(kFullWarp, query.place, x);
    if (!exists || i >= kStepQueries * pieces) continue;
    const TeacherPlace at = teacher_place<Config::kChunks>(x);
    const float* const from = p.teacher_lse2 + std::int64_t{place} * group + piece;
    float* const row = to + at.chunk * kChunkRows + at.row + piece;
    if (width == 4) {
      async_copy_16(row, from, true);
    } else {
      for (int head = 0; head < width; ++head) async_copy_4(row + head, from + head);
    }
  }
}

/// Rows of index_q and StepRows of all steps; a warp, of which lane i < 16 looks after query i of a step.
template <class Config>
__device__ __forceinline__ void produce_steps(const Params& p, typename Config::Storage& storage) {
  const int lane = threadIdx.x % 32;
  PipelineState<Config::kStepStages> ring;
  for_each_item(storage, [&](const WorkItem& item) {
    const SequenceView view = p.batch.sequence(item.sequence);
    const int first_key = item.block * p.batch.block_size;
    const int position = view.seqlen_k - view.seqlen_q - view.q_row;  // of row 0
    const auto row_of = [&](int begin) { return lane < kStepQueries ? p.work.visited_row(item, begin + lane) : -1; };
    std::int32_t row = row_of(0);
    for (int begin = 0; begin < item.count; begin += kStepQueries, ring.advance()) {
      const StepQuery query(p, item, row);
      row = row_of(begin + kStepQueries);
      EmptyBarrier::wait(&storage.step_empty[ring.stage], ring.phase ^ 1);
      StepRows<Config::kChunks>& rows = storage.rows[ring.stage];
      if (lane < kStepQueries) {
        rows.lse2[lane] = query.stats.lse2;
        rows.weight[lane] = query.stats.weight;
        rows.to_fixed[lane] = kFixedOne / Config::kGradientScale / query.stats.bound;
        rows.place[lane] = query.place;
        rows.keys[lane] = query.contributes() ? min(position + query.row - first_key + 1, p.batch.block_size) : 0;
      }
      copy_index_rows<Config>(p, item, query, storage.index_q[ring.stage], lane);
      copy_teacher_lse<Config>(p, query, rows.teacher_lse2, lane);
      async_arrive(&storage.step_full[ring.stage]);
      EmptyBarrier::arrive(&storage.step_full[ring.stage]);
    }
  });
}

}  // namespace openmsa::cuda::sm90::training::kl
