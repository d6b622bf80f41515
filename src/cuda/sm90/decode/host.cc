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

SelectParams select_params(const Problem& problem) {
  SelectParams p{};
  p.batch = batch_view(problem);
  p.rules = selection_rules(problem.plan);
  p.heads = problem.plan.config.num_heads_kv;
  p.topk_indices = selection_view(problem.tensors.topk_indices);
  return p;
}

/// The index branch up to its candidates.
SelectParams score_keys(const Problem& problem, Arena& arena, Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_config& config = plan.config;
  const openmsa_tensors& t = problem.tensors;
  SelectParams p = select_params(problem);
  p.lists = take_candidates(arena, plan);
  p.lists.ctas = std::min(launch.num_sms, kMaxIndexCtas);
  p.lists.tile_rows = index_tile_rows(mean_queries(problem.total_q, problem.batch), config.num_heads_kv, config.topk);
  p.tile_queries = tile_queries(plan, p.lists.tile_rows);
  p.index_q = query_rows(t.index_q);
  const openmsa_tensor& keys = plan.is_paged() ? t.index_k_cache : t.index_k;
  p.key_box_rows = key_box_rows(plan, decode_stage_keys(keys.dtype == OPENMSA_FLOAT8_E4M3));
  p.index_k_scale = token_scale(t.index_k_scale);
  const CUtensorMap map = key_map(problem, t.index_k, t.index_k_cache, false, p.key_box_rows, p.lists.ranked);
  find_variant(kSelectVariants, {config.dtype, keys.dtype, config.index_dim}, "decode")(p, map, launch);
  return p;
}

void attend_selected(const Problem& problem, const SelectParams& select, Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  AttendParams p{};
  p.select = select;
  p.cluster_queries = cluster_queries(problem.total_q, problem.batch, plan.config.num_heads_kv, launch.num_sms);
  p.log2_group_size = std::countr_zero(static_cast<std::uint64_t>(plan.group_size));
  p.key_box_rows = key_box_rows(plan, kTileKeys);
  p.scale_log2 = scale_log2(plan);
  p.k_scale = token_scale(t.k_scale);
  p.v_scale = token_scale(t.v_scale);
  p.q = query_rows(t.q);
  p.out = output_rows(t);
  const openmsa_tensor& keys = plan.is_paged() ? t.k_cache : t.k;
  const CUtensorMap k = key_map(problem, t.k, t.k_cache, true, p.key_box_rows, t.q.data);
  const CUtensorMap v = key_map(problem, t.v, t.v_cache, true, p.key_box_rows, t.q.data);
  find_variant(kAttendVariants, {plan.config.dtype, keys.dtype, plan.config.head_dim}, "decode")(p, k, v, launch);
}

}  // namespace

CandidateLists take_candidates(Arena& arena, const Plan& plan) {
  const openmsa_config& config = plan.config;
  const std::int64_t queries = std::min(config.max_total_q, kDecodeQueries * config.max_batch);
  std::int64_t rows = 0;
  for (const std::int32_t tile_rows : kDecodeTileRows) {
    const std::int32_t tile = tile_queries(plan, tile_rows);
    if (tile > 0) rows = std::max(rows, tile_rows * max_segments(queries, config.max_batch, tile));
  }
  return {arena.take<Ranked>(rows * config.topk), 0, 0};
}

void select(const Problem& problem, Arena arena, Launch launch) {
  launch_choose(score_keys(problem, arena, launch), launch);
}

void attend(const Problem& problem, Launch launch) { attend_selected(problem, select_params(problem), launch); }

void layer(const Problem& problem, Arena arena, Launch launch) {
  attend_selected(problem, score_keys(problem, arena, launch), launch);
}

}  // namespace openmsa::cuda::sm90::decode
