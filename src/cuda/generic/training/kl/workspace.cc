#include "cuda/generic/training/kl/workspace.h"

namespace openmsa::cuda::generic::training::kl {
namespace {

using core::Arena;
using core::Plan;

/// Visits of a row and KV head, at most.
std::int64_t visits_of(const Plan& plan, bool is_dense) { return is_dense ? plan.max_blocks : plan.config.topk; }

}  // namespace

/// d_index_k of a key; d_index_q, statistics and the visits of a place, each with its log-sum-exp and probabilities.
BatchCosts LossWorkspace::costs(const Plan& plan, bool is_dense) {
  constexpr std::int64_t kVisitBytes = sizeof(PartialLse) + kTeacherBytes;
  const std::int64_t stats = sizeof(RowStats), visits = visits_of(plan, is_dense);
  return {plan.config.index_dim * 4, plan.config.index_dim * 4 + stats + visits * kVisitBytes,
          is_dense ? kLeastHistoryPlaces : kLeastBackwardPlaces};
}

LossWorkspace::LossWorkspace(Arena& arena, const Plan& plan, bool is_dense, const ListBatches& batches) : params{} {
  const openmsa_config& config = plan.config;
  const std::int64_t places = batches.places(), visits = places * visits_of(plan, is_dense);
  params.slots = static_cast<std::int32_t>(visits_of(plan, is_dense));
  params.maxima = {arena.take<std::uint32_t>(1), arena.take<float>(plan.max_total_k)};
  params.next_item = arena.take<std::int32_t>(kItemCounters);
  params.partials = arena.take<PartialLse>(visits);
  params.teacher = {arena.take<std::uint16_t>(visits * kTileKeys), is_dense ? params.slots : 0};
  params.stats = arena.take<RowStats>(places);
  params.d_index_q_sums = arena.take<std::int32_t>(places * config.index_dim);
  params.item_loss = arena.take<float>(batches.items);
  params.d_index_k_sums = arena.take<float>(batches.heads * plan.max_total_k * config.index_dim);
  params.loss = arena.take<double>(1);
}

}  // namespace openmsa::cuda::generic::training::kl
