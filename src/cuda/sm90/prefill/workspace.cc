#include "cuda/sm90/prefill/workspace.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/prefill/params.h"
#include "cuda/sm90/prefill/select/params.h"

namespace openmsa::cuda::sm90::prefill {
namespace {

using core::Arena;
using core::ceil_div;
using core::Plan;

BatchIndex take_index(Arena& arena, const Plan& plan) {
  return {arena.take<std::int32_t>(plan.config.max_batch + 2), arena.take<std::int32_t>(plan.config.max_batch + 1)};
}

}  // namespace

int list_capacity(const Plan& plan) {
  for (const int capacity : kListCapacities) {
    if (plan.config.topk <= capacity) return capacity;
  }
  core::fail(OPENMSA_INTERNAL, "select: no kernel for this plan");
}

std::int64_t max_tiles(std::int64_t total_q, std::int64_t batch, std::int64_t queries) {
  return ceil_div(total_q, queries) + batch + 1;
}

SelectWorkspace::SelectWorkspace(Arena& arena, const Plan& plan, int capacity)
    : capacity(capacity),
      queries_per_tile(select_tile_queries(capacity, static_cast<int>(plan.config.num_heads_kv))),
      index(take_index(arena, plan)),
      longest(arena.take<std::int32_t>(1)) {
  const auto blocks = static_cast<std::int32_t>(std::min<std::int64_t>(plan.max_blocks, INT32_MAX));
  most_splits = capacity == kNoList ? 1 : select_splits(1, blocks, kMaxSelectSplits);
  const std::int64_t tiles = max_tiles(plan.config.max_total_q, plan.config.max_batch, queries_per_tile);
  const std::int64_t items = most_splits == 1 ? 0 : std::min<std::int64_t>(kSelectItems, tiles * most_splits);
  partial_lists = arena.take<Ranked>(items * queries_per_tile * plan.config.num_heads_kv * capacity);
}

AttendWorkspace::AttendWorkspace(Arena& arena, const Plan& plan) : index(take_index(arena, plan)) {
  const openmsa_config& config = plan.config;
  const std::int64_t tile_queries = std::min<std::int64_t>(generic::kMaxTileQueries, 128 / plan.group_size);
  const std::int64_t row_bytes = config.topk * plan.group_size * (config.head_dim * 2 + 4);
  const std::int64_t all_tiles = max_tiles(config.max_total_q, config.max_batch, tile_queries);
  const std::int64_t tiles = schedule_batch_tiles(row_bytes, tile_queries, all_tiles);
  const std::int64_t pairs = tiles * tile_queries * config.topk, blocks = config.max_batch * plan.max_blocks;
  const std::int64_t q_bytes = tiles * tile_queries * plan.group_size * config.head_dim * 2;
  const std::int64_t passes = schedule_batch_passes(q_bytes, generic::kMaxPasses);
  const std::int64_t heads = std::min<std::int64_t>(config.num_heads_kv, kBatchesTogether);
  partial_tiles = schedule_batch_tiles(row_bytes, tile_queries, all_tiles * heads);
  scheduled = static_cast<int>(batches_at_once(ceil_div(all_tiles, tiles) * config.num_heads_kv));

  work = {};
  work.max_tiles = static_cast<std::int32_t>(tiles);
  work.tile_queries = static_cast<std::int32_t>(tile_queries);
  work.slots = config.topk;
  // More than one pass only where kv_blocks are few (ScheduleBatch::passes).
  work.max_lists =
      static_cast<std::int32_t>(std::max(blocks, std::min(passes * blocks, pairs / generic::kMinPassVisits)));
  work.max_items = static_cast<std::int32_t>(blocks + pairs / generic::kItemVisits + 1);
  work.shared = arena.take<generic::SharedBlock>(scheduled * pairs);
  work.shared_counts = arena.take<std::int32_t>(scheduled * tiles);
  work.slot_counts = arena.take<std::int32_t>(scheduled * tiles * tile_queries);
  work.pairs = arena.take<generic::KvOuterPair>(scheduled * pairs);
  work.visits = arena.take<generic::Visit>(scheduled * pairs);
  work.items = arena.take<generic::KvOuterItem>(scheduled * work.max_items);
  work.list_counts = arena.take<std::int32_t>(scheduled * work.max_lists);
  work.list_offsets = arena.take<std::int32_t>(scheduled * work.max_lists);
  work.num_items = arena.take<std::int32_t>(scheduled);
  const std::int64_t partial_rows = partial_tiles * tile_queries * config.topk * plan.group_size;
  work.partial_o = arena.take<std::uint16_t>(partial_rows * config.head_dim);
  work.partial_lse = arena.take<float>(partial_rows);
}

}  // namespace openmsa::cuda::sm90::prefill
