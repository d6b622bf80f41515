#include "cuda/prefill_plan.h"

namespace openmsa::cuda {
namespace {

/// Work items that fill every SM twice; fewer tiles than that have their keys split.
constexpr std::int64_t kWantedItems = 264;
constexpr std::int64_t kMaxSplits = 16;
/// Fewer kv_blocks than this per split are not worth a merge.
constexpr std::int64_t kMinBlocksPerSplit = 16;

/// Partial results of one chunk: bounded in bytes (with the selection of a million queries, 2 GiB in all), and in rows
/// so that splitting them into work stays short.
constexpr std::int64_t kPartialBytes = std::int64_t{960} << 20;
constexpr std::int64_t kChunkRows = 16384;
/// Passes through a chunk's gathered work: their q should stay in the L2 cache, and a kv_block should be wanted often
/// enough in each of them to pay for loading it.
constexpr std::int64_t kPassBytes = 16 << 20;
constexpr std::int64_t kMinPassVisits = 48;
/// Chunks that are scheduled together.
constexpr std::int64_t kScheduledChunks = 8;

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
  const std::int64_t pairs = tiles * tile_queries * config.topk, blocks = config.max_batch * plan.max_blocks;
  const std::int64_t q_bytes = tiles * tile_queries * plan.group_size * config.head_dim * 2;
  const std::int64_t passes = std::clamp<std::int64_t>(
      std::min(core::ceil_div(q_bytes, kPassBytes), pairs / (blocks * kMinPassVisits)), 1, sm90::kMaxPasses);
  const std::int64_t chunks_per_head =
      core::ceil_div(max_tiles(config.max_total_q, config.max_batch, tile_queries), tiles);
  scheduled = static_cast<int>(std::min(kScheduledChunks, chunks_per_head * config.num_heads_kv));

  chunk = {};
  chunk.max_tiles = static_cast<std::int32_t>(tiles);
  chunk.tile_queries = static_cast<std::int32_t>(tile_queries);
  chunk.slots = config.topk;
  chunk.passes = static_cast<std::int32_t>(passes);
  chunk.max_lists = static_cast<std::int32_t>(passes * blocks);
  chunk.max_items = static_cast<std::int32_t>(blocks + pairs / sm90::kItemVisits + 1);
  chunk.unions = arena.take<sm90::UnionEntry>(scheduled * pairs);
  chunk.union_counts = arena.take<std::int32_t>(scheduled * tiles);
  chunk.slot_counts = arena.take<std::int32_t>(scheduled * tiles * tile_queries);
  chunk.pairs = arena.take<sm90::GatheredPair>(scheduled * pairs);
  chunk.visits = arena.take<sm90::Visit>(scheduled * pairs);
  chunk.items = arena.take<sm90::GatheredItem>(scheduled * chunk.max_items);
  chunk.list_counts = arena.take<std::int32_t>(scheduled * chunk.max_lists);
  chunk.list_offsets = arena.take<std::int32_t>(scheduled * chunk.max_lists);
  chunk.num_items = arena.take<std::int32_t>(scheduled);
  chunk.partial_o = arena.take<std::uint16_t>(pairs * plan.group_size * config.head_dim);
  chunk.partial_lse = arena.take<float>(pairs * plan.group_size);
}

}  // namespace openmsa::cuda
