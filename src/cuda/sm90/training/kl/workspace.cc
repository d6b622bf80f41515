#include "cuda/sm90/training/kl/workspace.h"

#include <algorithm>

#include "cuda/generic/lists/list.h"
#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/training/call.h"

namespace openmsa::cuda::sm90::training::kl {
namespace {

using core::Arena;
using core::Plan;

/// d_index_k of a key and KV head.
std::int64_t key_bytes(const Plan& plan) { return plan.config.index_dim * static_cast<std::int64_t>(sizeof(float)); }

/// Everything of a row and KV head: d_index_q, statistics, partial log-sum-exps, bits, visits and items.
std::int64_t place_bytes(const Plan& plan, std::int64_t topk, std::int64_t slots) {
  const std::int64_t d_index_q = plan.config.index_dim * 4, stats = sizeof(RowStats) + plan.group_size * 4;
  const std::int64_t bits = topk == 0 ? 0 : plan.max_blocks / 8 + 1;
  return d_index_q + stats + slots * static_cast<std::int64_t>(sizeof(PartialLse)) + bits + topk * (4 + 1);
}

/// Rows of a list batch of `heads` KV heads.
std::int64_t max_list_rows(const Plan& plan, std::int64_t topk, std::int64_t slots, std::int64_t heads) {
  const std::int64_t left = kBackwardBytes - heads * plan.max_total_k * key_bytes(plan);
  const std::int64_t most = std::min<std::int64_t>(generic::kMaxListRows, plan.config.max_total_q);
  return std::clamp<std::int64_t>(left / (place_bytes(plan, topk, slots) * heads), std::min(kLeastBackwardPlaces, most),
                                  most);
}

}  // namespace

Workspace::Workspace(Arena& arena, const Plan& plan, bool is_dense) : params{} {
  const openmsa_config& config = plan.config;
  const std::int64_t topk = is_dense ? 0 : config.topk, total_k = plan.max_total_k;
  params.slots = static_cast<std::int32_t>(is_dense ? plan.max_blocks : config.topk);
  heads = static_cast<std::int32_t>(std::clamp<std::int64_t>(
      kBackwardBytes / 2 / std::max<std::int64_t>(total_k * key_bytes(plan), 1), 1, config.num_heads_kv));
  max_rows = static_cast<std::int32_t>(max_list_rows(plan, topk, params.slots, heads));

  const std::int64_t places = std::int64_t{max_rows} * heads;
  const generic::ListCapacity capacity = list_capacity(plan, is_dense, heads, max_rows);
  const std::int64_t blocks = capacity.total_blocks, parts = capacity.ranges * heads * blocks;
  const std::int64_t items = is_dense ? parts : generic::ListItems::max_items(places * topk, parts);
  words = generic::list_words(capacity);
  lists = generic::take_lists(arena, capacity);
  params.maxima = {arena.take<std::uint32_t>(1), arena.take<std::uint32_t>(blocks)};
  params.next_item = arena.take<std::int32_t>(2);
  params.partials = arena.take<PartialLse>(places * params.slots);
  params.stats = arena.take<RowStats>(places);
  params.teacher_lse2 = arena.take<float>(places * plan.group_size);
  params.d_index_q_sums = arena.take<std::int32_t>(places * config.index_dim);
  params.item_loss = arena.take<float>(items);
  params.d_index_k_sums = arena.take<float>(heads * total_k * config.index_dim);
  params.loss = arena.take<double>(1);
}

}  // namespace openmsa::cuda::sm90::training::kl
