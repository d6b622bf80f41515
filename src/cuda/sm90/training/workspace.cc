#include "cuda/sm90/training/workspace.h"

#include <algorithm>

#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/training/call.h"

namespace openmsa::cuda::sm90::training {
namespace {

using core::Arena;
using core::Plan;

/// d_k and d_v of a key and KV head.
std::int64_t key_bytes(const Plan& plan) { return 2 * plan.config.head_dim * static_cast<std::int64_t>(sizeof(float)); }

/// Everything of a row and KV head: d_q, statistics, bits, visits and items.
std::int64_t place_bytes(const Plan& plan, std::int64_t topk) {
  const std::int64_t d_q = plan.group_size * plan.config.head_dim * 4, stats = plan.group_size * 3 * 4;
  const std::int64_t bits = topk == 0 ? 0 : plan.max_blocks / 8 + 1;
  return d_q + stats + bits + topk * (4 + 1);
}

/// Rows times KV heads of a list batch.
std::int64_t max_places(const Plan& plan, std::int64_t topk, std::int64_t heads) {
  const std::int64_t left = kBackwardBytes - heads * plan.max_total_k * key_bytes(plan);
  const std::int64_t most = std::min<std::int64_t>(generic::kMaxListRows, heads * plan.config.max_total_q);
  return std::clamp<std::int64_t>(left / place_bytes(plan, topk), std::min(kLeastBackwardPlaces, most), most);
}

}  // namespace

BackwardWorkspace::BackwardWorkspace(Arena& arena, const Plan& plan, bool is_dense) {
  const openmsa_config& config = plan.config;
  const std::int64_t topk = is_dense ? 0 : config.topk, total_k = plan.max_total_k;
  heads = static_cast<std::int32_t>(
      backward_heads(config.num_heads_kv, config.max_total_q, generic::kMaxListRows, total_k * key_bytes(plan)));
  max_rows = static_cast<std::int32_t>(std::max<std::int64_t>(max_places(plan, topk, heads) / heads, 1));

  const std::int64_t places = std::int64_t{max_rows} * heads;
  const generic::ListCapacity capacity = list_capacity(plan, is_dense, heads, max_rows);
  words = generic::list_words(capacity);
  lists = generic::take_lists(arena, capacity);
  bounds = arena.take<KeyBounds>(config.max_batch * config.num_heads_kv);
  stats.lse2 = arena.take<float>(places * plan.group_size);
  stats.delta = arena.take<float>(places * plan.group_size);
  stats.to_fixed = arena.take<float>(places * plan.group_size);
  d_q_sums = arena.take<std::int32_t>(places * plan.group_size * config.head_dim);
  d_kv_sums = arena.take<float>(heads * total_k * 2 * config.head_dim);
}

}  // namespace openmsa::cuda::sm90::training
