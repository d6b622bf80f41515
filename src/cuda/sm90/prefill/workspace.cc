#include "cuda/sm90/prefill/workspace.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/sm90/heuristics.h"
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
      queries_per_tile(select_queries_per_tile(plan.config.num_heads_kv, capacity)),
      index(take_index(arena, plan)) {
  const std::int64_t tiles = ceil_div(plan.config.max_total_q, queries_per_tile) + plan.config.max_batch - 1;
  num_splits = capacity == kNoList ? 1 : static_cast<int>(select_splits(tiles, plan.max_blocks));
  const std::int64_t lists = num_splits == 1 ? 0 : plan.config.max_total_q * plan.config.num_heads_kv * num_splits;
  partial_keys = arena.take<std::int32_t>(lists * capacity);
  partial_blocks = arena.take<std::int32_t>(lists * capacity);
}

AttendWorkspace::AttendWorkspace(Arena& arena, const Plan& plan) : index(take_index(arena, plan)) {
  const openmsa_config& config = plan.config;
  const std::int64_t tile_queries = std::min<std::int64_t>(generic::kMaxTileQueries, 128 / plan.group_size);
  const std::int64_t row_bytes = config.topk * plan.group_size * (config.head_dim * 2 + 4);
  const std::int64_t all_tiles = max_tiles(config.max_total_q, config.max_batch, tile_queries);
  const std::int64_t tiles = schedule_batch_tiles(row_bytes, tile_queries, all_tiles);
  const std::int64_t pairs = tiles * tile_queries * config.topk, blocks = config.max_batch * plan.max_blocks;
  const std::int64_t q_bytes = tiles * tile_queries * plan.group_size * config.head_dim * 2;
  const std::int64_t passes = schedule_batch_passes(q_bytes, pairs, blocks, generic::kMaxPasses);
  scheduled = static_cast<int>(batches_at_once(ceil_div(all_tiles, tiles) * config.num_heads_kv));

  work = {};
  work.max_tiles = static_cast<std::int32_t>(tiles);
  work.tile_queries = static_cast<std::int32_t>(tile_queries);
  work.slots = config.topk;
  work.passes = static_cast<std::int32_t>(passes);
  work.max_lists = static_cast<std::int32_t>(passes * blocks);
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
  work.partial_o = arena.take<std::uint16_t>(pairs * plan.group_size * config.head_dim);
  work.partial_lse = arena.take<float>(pairs * plan.group_size);
}

}  // namespace openmsa::cuda::sm90::prefill
