#include "cuda/generic/training/workspace.h"

namespace openmsa::cuda::generic::training {

using core::Arena;
using core::Plan;

/// d_k and d_v of a key; d_q and statistics of a place.
BatchCosts BackwardWorkspace::costs(const Plan& plan) {
  const std::int64_t dim = plan.config.head_dim;
  return {2 * dim * 4, plan.group_size * (dim * 4 + 3 * 4), kLeastBackwardPlaces};
}

BackwardWorkspace::BackwardWorkspace(Arena& arena, const Plan& plan, const ListBatches& batches) {
  const openmsa_config& config = plan.config;
  const std::int64_t places = batches.places();
  bounds = arena.take<KeyBounds>(plan.max_total_k * config.num_heads_kv);
  stats.keys = arena.take<KeyBounds>(places);
  stats.lse2 = arena.take<float>(places * plan.group_size);
  stats.delta = arena.take<float>(places * plan.group_size);
  stats.to_fixed = arena.take<float>(places * plan.group_size);
  d_q_sums = arena.take<std::int32_t>(places * plan.group_size * config.head_dim);
  d_kv_sums = arena.take<float>(batches.heads * plan.max_total_k * 2 * config.head_dim);
}

}  // namespace openmsa::cuda::generic::training
