#include "cuda/sm90/decode/host.h"

#include <algorithm>
#include <bit>

#include "cuda/common/call.h"
#include "cuda/sm90/decode/variants.h"
#include "cuda/sm90/heuristics.h"

namespace openmsa::cuda::sm90::decode {
namespace {

using core::Arena;
using core::ceil_div;
using core::Plan;
using core::Problem;

/// Query tokens of a tile of the index branch.
std::int32_t tile_queries(const Plan& plan, std::int32_t tile_rows) { return tile_rows / plan.config.num_heads_kv; }

/// Segments that calls with `queries` query tokens in `batch` sequences can have (split.h).
std::int64_t max_segments(std::int64_t queries, std::int64_t batch, std::int64_t tile_queries) {
  return kMaxIndexCtas + ceil_div(queries, tile_queries) + batch;
}

/// Keys of a box of the tensor maps: what a kernel loads at a time, or a page of it.
std::int32_t key_box_rows(const Plan& plan, std::int32_t keys) {
  return plan.is_paged() ? std::min(plan.config.page_size, keys) : keys;
}

/// What both branches share: group_queries is for attention, the index for whoever needs it.
SelectParams select_params(const Problem& problem, QueryRange served, const Workspace& workspace,
                           std::int32_t group_queries) {
  SelectParams p{};
  p.batch = batch_view(problem);
  p.served = served;
  p.rules = selection_rules(problem.plan);
  p.heads = problem.plan.config.num_heads_kv;
  p.tile_queries = 1;
  p.group_queries = group_queries;
  const bool needs_index = workspace.ranked != nullptr || !served.is_open();
  if (p.batch.batch > kLaneSequences && needs_index) p.index = workspace.index;
  p.topk_indices = selection_view(problem.tensors.topk_indices);
  p.candidates = candidate_view(problem.tensors.candidates);
  p.rules.wants_scores = p.candidates.data != nullptr;
  return p;
}

std::int32_t queries_of_cluster(const Problem& problem, QueryRange served, Launch launch) {
  return cluster_queries(problem.total_q, expected_queries(served, problem.total_q, problem.batch),
                         problem.plan.config.num_heads_kv, launch.num_sms, problem.plan.has_fp8_kv());
}

/// The index branch up to its candidates.
void score_keys(const Problem& problem, SelectParams& p, const Workspace& workspace, Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_config& config = plan.config;
  const openmsa_tensors& t = problem.tensors;
  p.lists.ranked = workspace.ranked;
  p.lists.tile_rows =
      index_tile_rows(expected_queries(p.served, problem.total_q, problem.batch), config.num_heads_kv, config.topk);
  p.tile_queries = tile_queries(plan, p.lists.tile_rows);
  p.index_q = index_query_rows(problem);
  if (plan.is_paged()) {
    const std::int64_t keys = t.block_table.shape[1] * config.page_size;
    p.table_keys = static_cast<std::int32_t>(std::min<std::int64_t>(keys, INT32_MAX));
  }
  const openmsa_tensor& keys = plan.is_paged() ? t.index_k_cache : t.index_k;
  const bool is_fp8 = keys.dtype == OPENMSA_FLOAT8_E4M3;
  p.lists.ctas = std::min(launch.num_sms, kMaxSms) * index_ctas_per_sm(p.lists.tile_rows, config.topk, is_fp8);
  p.key_box_rows = key_box_rows(plan, decode_stage_keys(is_fp8));
  p.index_k_scale = index_token_scale(problem);
  p.index_block_scale = index_block_scale(problem);
  const CUtensorMap map = key_map(problem, t.index_k, t.index_k_cache, false, p.key_box_rows, p.lists.ranked);
  if (is_indexed(p)) launch_index(p, launch);
  find_variant(kSelectVariants, {config.dtype, keys.dtype, config.index_dim}, "decode")(p, map, launch);
}

void attend_selected(const Problem& problem, const SelectParams& select, Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  AttendParams p{};
  p.select = select;
  p.log2_group_size = std::countr_zero(static_cast<std::uint64_t>(plan.group_size));
  p.key_box_rows = key_box_rows(plan, kTileKeys);
  p.scale_log2 = scale_log2(plan);
  p.k_scale = token_scale(t.k_scale);
  p.v_scale = token_scale(t.v_scale);
  p.q = query_rows(t.q);
  p.out = output_rows(t);
  const openmsa_tensor& keys = plan.is_paged() ? t.k_cache : t.k;
  if (plan.is_paged()) {
    p.warm[0] = static_cast<const char*>(t.k_cache.data);
    p.warm[1] = static_cast<const char*>(t.v_cache.data);
    p.warm_stride = t.k_cache.strides[0] * (t.k_cache.dtype == OPENMSA_FLOAT8_E4M3 ? 1 : 2);
  }
  const CUtensorMap k = key_map(problem, t.k, t.k_cache, true, p.key_box_rows, t.q.data);
  const CUtensorMap v = key_map(problem, t.v, t.v_cache, true, p.key_box_rows, t.q.data);
  find_variant(kAttendVariants, {plan.config.dtype, keys.dtype, plan.config.head_dim}, "decode")(p, k, v, launch);
}

}  // namespace

Workspace::Workspace(Arena& arena, const Plan& plan, bool has_candidates)
    : index{arena.take<std::int32_t>(plan.config.max_batch + 1), arena.take<std::int32_t>(plan.config.max_batch + 1),
            arena.take<std::int32_t>(plan.config.max_batch + 1)},
      ranked(nullptr) {
  if (!has_candidates) return;
  const openmsa_config& config = plan.config;
  const std::int64_t queries = std::min(config.max_total_q, kDecodeQueries * config.max_batch);
  std::int64_t rows = 0;
  for (const std::int32_t tile_rows : kDecodeTileRows) {
    const std::int32_t tile = tile_queries(plan, tile_rows);
    if (tile == 0) continue;
    rows = std::max(rows, tile_rows * max_segments(queries, config.max_batch, tile));
  }
  ranked = arena.take<Ranked>(rows * config.topk);
}

void select(const Problem& problem, QueryRange served, Arena arena, Launch launch) {
  const Workspace workspace(arena, problem.plan, true);
  SelectParams p = select_params(problem, served, workspace, 1);
  score_keys(problem, p, workspace, launch);
  launch_choose(p, launch);
}

void attend(const Problem& problem, QueryRange served, Arena arena, Launch launch) {
  const Workspace workspace(arena, problem.plan, false);
  const SelectParams p = select_params(problem, served, workspace, queries_of_cluster(problem, served, launch));
  if (is_indexed(p)) launch_index(p, launch);
  attend_selected(problem, p, launch);
}

void layer(const Problem& problem, QueryRange served, Arena arena, Launch launch) {
  const Workspace workspace(arena, problem.plan, true);
  SelectParams p = select_params(problem, served, workspace, queries_of_cluster(problem, served, launch));
  score_keys(problem, p, workspace, launch);
  attend_selected(problem, p, launch);
}

}  // namespace openmsa::cuda::sm90::decode
