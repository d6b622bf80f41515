#include "cuda/decode.h"

#include <algorithm>
#include <bit>
#include <iterator>

#include "core/error.h"
#include "cuda/call.h"
#include "cuda_variants.h"  // generated: kDecodeSelectVariants, kDecodeAttendVariants

namespace openmsa::cuda {
namespace {

using core::Arena;
using core::ceil_div;
using core::Plan;
using core::present;
using core::Problem;

/// Query tokens of a tile of the index branch.
std::int32_t tile_queries(const Plan& plan, std::int32_t tile_rows) { return tile_rows / plan.config.num_heads_kv; }

/// Segments that calls with `queries` query tokens in `batch` sequences can have (sm90/decode/split.h).
std::int64_t max_segments(std::int64_t queries, std::int64_t batch, std::int64_t tile_queries) {
  return sm90::kMaxSplitBlocks + ceil_div(queries, tile_queries) + batch;
}

/// Mean query tokens per sequence of a call.
std::int64_t mean_queries(const Problem& problem) {
  return std::max<std::int64_t>(ceil_div(problem.total_q, std::max<std::int64_t>(problem.batch, 1)), 1);
}

std::int32_t tile_rows(const Problem& problem) {
  const openmsa_config& config = problem.plan.config;
  for (const std::int32_t rows : sm90::kDecodeTileRows) {
    const bool lists_fit = rows > sm90::kDecodeFewRows || config.topk <= sm90::kDecodeFewTopk;
    if (lists_fit && mean_queries(problem) * config.num_heads_kv <= rows) return rows;
  }
  return std::end(sm90::kDecodeTileRows)[-1];
}

/// A query per cluster as long as there is an SM for each. Then several share what they read, as many as sequences with
/// the mean number of them can be cut into; two are no faster than one and one.
std::int32_t cluster_queries(const Problem& problem, int num_sms) {
  if (problem.total_q * problem.plan.config.num_heads_kv <= num_sms) return 1;
  for (const std::int32_t queries : {sm90::kClusterQueries, 3}) {
    if (mean_queries(problem) % queries == 0) return queries;
  }
  return 1;
}

template <class Variant>
auto* find_variant(const Variant* begin, const Variant* end, openmsa_dtype dtype, openmsa_dtype cached, int dim) {
  for (const Variant* variant = begin; variant != end; ++variant) {
    if (variant->dtype == dtype && variant->cached == cached && variant->dim == dim) return variant->function;
  }
  core::fail(OPENMSA_INTERNAL, "decode: no kernel for this plan");
}

/// Keys of a box of the tensor maps: what a kernel loads at a time, or a page of it.
std::int32_t key_box_rows(const Plan& plan, std::int32_t keys) {
  return plan.is_paged() ? std::min(plan.config.page_size, keys) : keys;
}

sm90::DecodeSelectParams select_params(const Problem& problem) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  sm90::DecodeSelectParams p{};
  p.batch = batch_view(problem);
  p.rules = {plan.config.block_size, plan.config.topk, plan.config.num_init_blocks, plan.config.num_local_blocks};
  p.heads = plan.config.num_heads_kv;
  if (present(t.topk_indices)) {
    p.topk_indices = static_cast<std::int32_t*>(t.topk_indices.data);
    std::copy_n(t.topk_indices.strides, 3, p.topk_strides);
  }
  return p;
}

/// The index branch up to its candidates.
sm90::DecodeSelectParams score_keys(const Problem& problem, Arena& arena, sm90::Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  sm90::DecodeSelectParams p = select_params(problem);
  p.lists = take_candidates(arena, plan);
  p.lists.blocks = std::min(launch.num_sms, sm90::kMaxSplitBlocks);
  p.lists.tile_rows = tile_rows(problem);
  p.tile_queries = tile_queries(plan, p.lists.tile_rows);
  p.index_q = t.index_q.data;
  p.q_row_stride = t.index_q.strides[0];
  p.q_head_stride = t.index_q.strides[1];
  const openmsa_tensor& keys = plan.is_paged() ? t.index_k_cache : t.index_k;
  p.key_box_rows = key_box_rows(plan, sm90::decode_stage_keys(keys.dtype == OPENMSA_FLOAT8_E4M3));
  p.index_k_scale = token_scale(t.index_k_scale);
  const CUtensorMap map = key_map(problem, t.index_k, t.index_k_cache, false, p.key_box_rows, p.lists.ranked);
  find_variant(std::begin(kDecodeSelectVariants), std::end(kDecodeSelectVariants), plan.config.dtype, keys.dtype,
               plan.config.index_dim)(p, map, launch);
  return p;
}

void attend(const Problem& problem, const sm90::DecodeSelectParams& select, sm90::Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  sm90::DecodeAttendParams p{};
  p.select = select;
  p.cluster_queries = cluster_queries(problem, launch.num_sms);
  p.log2_group_size = std::countr_zero(static_cast<std::uint64_t>(plan.group_size));
  p.key_box_rows = key_box_rows(plan, sm90::kPieceKeys);
  p.scale_log2 = static_cast<float>(plan.softmax_scale * 1.4426950408889634);
  p.q = t.q.data;
  std::copy_n(t.q.strides, 2, p.q_strides);
  p.o = t.o.data;
  std::copy_n(t.o.strides, 2, p.o_strides);
  if (present(t.lse)) {
    p.lse = static_cast<float*>(t.lse.data);
    std::copy_n(t.lse.strides, 2, p.lse_strides);
  }
  p.k_scale = token_scale(t.k_scale);
  p.v_scale = token_scale(t.v_scale);
  const openmsa_tensor& keys = plan.is_paged() ? t.k_cache : t.k;
  const CUtensorMap k = key_map(problem, t.k, t.k_cache, true, p.key_box_rows, t.q.data);
  const CUtensorMap v = key_map(problem, t.v, t.v_cache, true, p.key_box_rows, t.q.data);
  find_variant(std::begin(kDecodeAttendVariants), std::end(kDecodeAttendVariants), plan.config.dtype, keys.dtype,
               plan.config.head_dim)(p, k, v, launch);
}

}  // namespace

bool is_decode(const Problem& problem) {
  // Key tiles of all query tiles are counted in 32 bits.
  const std::int64_t query_tiles = problem.total_q + problem.batch;
  const std::int64_t key_tiles = ceil_div(problem.plan.config.max_seqlen_k, sm90::kKeyTile) + 1;
  return problem.total_q <= sm90::kDecodeQueries * problem.batch && query_tiles <= INT32_MAX / key_tiles;
}

bool attends_by_decode(const Problem& problem) { return is_decode(problem) || problem.plan.has_fp8_kv(); }

sm90::CandidateLists take_candidates(Arena& arena, const Plan& plan) {
  const openmsa_config& config = plan.config;
  const std::int64_t queries = std::min(config.max_total_q, sm90::kDecodeQueries * config.max_batch);
  std::int64_t rows = 0;
  for (const std::int32_t tile_rows : sm90::kDecodeTileRows) {
    const std::int32_t tile = tile_queries(plan, tile_rows);
    if (tile > 0) rows = std::max(rows, tile_rows * max_segments(queries, config.max_batch, tile));
  }
  return {arena.take<sm90::Ranked>(rows * config.topk), 0, 0};
}

void run_decode_select(const Problem& problem, Arena& arena, sm90::Launch launch) {
  sm90::decode_choose(score_keys(problem, arena, launch), launch);
}

void run_decode_attention(const Problem& problem, sm90::Launch launch) {
  attend(problem, select_params(problem), launch);
}

void run_decode_layer(const Problem& problem, Arena& arena, sm90::Launch launch) {
  attend(problem, score_keys(problem, arena, launch), launch);
}

}  // namespace openmsa::cuda
