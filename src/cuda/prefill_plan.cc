#include "cuda/prefill_plan.h"

namespace openmsa::cuda {
namespace {

/// Work items that fill every SM twice; fewer tiles than that have their keys split.
constexpr std::int64_t kWantedItems = 264;
constexpr std::int64_t kMaxSplits = 16;
/// Fewer kv_blocks than this per split are not worth a merge.
constexpr std::int64_t kMinBlocksPerSplit = 16;

/// Partial results of one chunk: bounded in bytes (with the selection of a million queries, 2 GiB in all), and in rows
/// so that the chunk's queries stay in the L2 cache (64 MB of q).
constexpr std::int64_t kPartialBytes = std::int64_t{960} << 20;
constexpr std::int64_t kChunkRows = 16384;

}  // namespace

SelectWorkspace::SelectWorkspace(core::Arena& arena, const core::Plan& plan, int capacity)
    : capacity(capacity),
      queries_per_tile(sm90::select_queries_per_tile(plan.config.num_heads_kv, capacity)),
      index(take_index(arena, plan)) {
  const std::int64_t tiles = core::ceil_div(plan.config.max_total_q, queries_per_tile) + plan.config.max_batch - 1;
  const std::int64_t splits = std::min({kMaxSplits, kWantedItems / tiles, plan.max_blocks / kMinBlocksPerSplit});
  num_splits = capacity == 0 ? 1 : static_cast<int>(std::max<std::int64_t>(splits, 1));
  const std::int64_t lists = num_splits == 1 ? 0 : plan.config.max_total_q * plan.config.num_heads_kv * num_splits;
  partial_keys = arena.take<std::int32_t>(lists * capacity);
  partial_blocks = arena.take<std::int32_t>(lists * capacity);
}

PrefillWorkspace::PrefillWorkspace(core::Arena& arena, const core::Plan& plan) : index(take_index(arena, plan)) {
  const openmsa_config& config = plan.config;
  const std::int64_t tile_queries = std::min<std::int64_t>(sm90::kMaxTileQueries, 128 / plan.group_size);
  const std::int64_t row_bytes = config.topk * plan.group_size * (config.head_dim * 2 + 4);
  const std::int64_t rows = std::min(kChunkRows, kPartialBytes / row_bytes);
  const std::int64_t tiles = std::min(std::max<std::int64_t>(rows / tile_queries, 1),
                                      max_tiles(config.max_total_q, config.max_batch, tile_queries));
  const std::int64_t lists = config.max_batch * plan.max_blocks;
  const std::int64_t pairs = tiles * tile_queries * config.topk;

  chunk = {};
  chunk.max_tiles = static_cast<std::int32_t>(tiles);
  chunk.tile_queries = static_cast<std::int32_t>(tile_queries);
  chunk.slots = config.topk;
  chunk.max_lists = static_cast<std::int32_t>(lists);
  chunk.unions = arena.take<sm90::UnionEntry>(pairs);
  chunk.union_counts = arena.take<std::int32_t>(tiles);
  chunk.slot_counts = arena.take<std::int32_t>(tiles * tile_queries);
  chunk.pairs = arena.take<sm90::GatheredPair>(pairs);
  chunk.visits = arena.take<sm90::Visit>(pairs);
  chunk.items = arena.take<sm90::GatheredItem>(lists + pairs / sm90::kMaxItemVisits + 1);
  chunk.list_counts = arena.take<std::int32_t>(lists);
  chunk.list_offsets = arena.take<std::int32_t>(lists);
  chunk.num_items = arena.take<std::int32_t>(1);
  chunk.partial_o = arena.take<std::uint16_t>(pairs * plan.group_size * config.head_dim);
  chunk.partial_lse = arena.take<float>(pairs * plan.group_size);
}

}  // namespace openmsa::cuda
