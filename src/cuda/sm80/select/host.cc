#include "cuda/sm80/select/host.h"

#include <algorithm>

#include "cuda/common/call.h"
#include "cuda/generic/schedule/kernels.h"
#include "cuda/sm80/call.h"
#include "cuda/sm80/heuristics.h"
#include "cuda/sm80/select/variants.h"

namespace openmsa::cuda::sm80::select {
namespace {

using core::Arena;
using core::ceil_div;
using core::Plan;
using core::Problem;

/// Longest topk of the smallest compiled lists that hold the plan's.
int list_capacity(const Plan& plan) {
  return plan.config.topk <= kListCapacities[0] ? kListCapacities[0] : kListCapacities[1];
}

std::int32_t prompt_queries(const Plan& plan, int capacity) { return prompt_rows(capacity) / plan.config.num_heads_kv; }

std::int64_t padded_columns(const Plan& plan) { return ceil_div(plan.max_blocks, 4) * 4; }

/// Queries of a sequence of a mixture that decode takes.
std::int32_t decode_queries(const Plan& plan) {
  const std::int64_t query_bytes = plan.config.num_heads_kv * padded_columns(plan) * 4;
  return score_queries(query_bytes, plan.config.max_batch);
}

std::int32_t decode_tile_queries(const Plan& plan) {
  return std::min(decode_queries(plan), kDecodeRows / plan.config.num_heads_kv);
}

/// Of every call of a plan; prompts and decode come one after the other.
struct Workspace {
  Workspace(Arena& arena, const Plan& plan, int capacity)
      : index{arena.take<std::int32_t>(plan.config.max_batch + 2), arena.take<std::int32_t>(plan.config.max_batch + 1)},
        longest(arena.take<std::int32_t>(1)) {
    if (capacity == kNoList) return;
    const openmsa_config& config = plan.config;
    const auto blocks = static_cast<std::int32_t>(std::min<std::int64_t>(plan.max_blocks, INT32_MAX));
    most_splits = select_splits(1, blocks, kMostItems, kMaxSplits);
    const std::int32_t queries = prompt_queries(plan, capacity);
    const std::int64_t tiles = max_tiles(config.max_total_q, config.max_batch, queries);
    const std::int64_t items = most_splits == 1 ? 0 : std::min<std::int64_t>(kMostItems, tiles * most_splits);
    Arena decode = arena;
    partial_lists = arena.take<Ranked>(items * queries * config.num_heads_kv * capacity);
    const std::int32_t of_decode = decode_queries(plan);
    if (of_decode == 0) return;
    const std::int64_t tile = decode_tile_queries(plan);
    const std::int64_t rows = std::max(config.max_batch * ceil_div(of_decode, tile) * tile,
                                       std::min(config.max_total_q, std::max(config.max_batch, kFewQueries)));
    scores = decode.take<float>(rows * config.num_heads_kv * padded_columns(plan));
    if (decode.used() > arena.used()) arena = decode;
  }

  BatchIndex index;
  std::int32_t* longest;
  std::int32_t most_splits = 1;  // of any call
  Ranked* partial_lists = nullptr;
  float* scores = nullptr;
};

SelectParams select_params(const Problem& problem, const Workspace& workspace, std::int32_t queries_per_tile) {
  const Plan& plan = problem.plan;
  SelectParams p{};
  p.batch = batch_view(problem);
  p.index = workspace.index;
  p.rules = selection_rules(plan);
  p.index_q = index_query_rows(problem);
  p.q_dtype = problem.tensors.index_q.dtype;
  p.index_k = key_tensor(problem, problem.tensors.index_k, problem.tensors.index_k_cache, false);
  p.index_k_scale = index_token_scale(problem);
  p.index_block_scale = index_block_scale(problem);
  p.heads = plan.config.num_heads_kv;
  p.queries_per_tile = queries_per_tile;
  p.topk_indices = selection_view(problem.tensors.topk_indices);
  p.most_splits = 1;
  return p;
}

SelectKey select_key(const Plan& plan) {
  return {plan.has_fp8_index() ? OPENMSA_FLOAT8_E4M3 : plan.config.dtype, plan.config.index_dim};
}

void select_prompts(const Problem& problem, QueryRange served, const Workspace& workspace, int capacity,
                    Launch launch) {
  const Plan& plan = problem.plan;
  SelectParams p = select_params(problem, workspace, prompt_queries(plan, capacity));
  p.items = std::min(2 * launch.num_sms, kMostItems);
  // Where all sequences are served, their tokens alone may fill the device.
  const std::int64_t least_tiles = served == kAllSequences ? ceil_div(problem.total_q, p.queries_per_tile) : 1;
  p.most_splits = 2 * least_tiles > p.items ? 1 : workspace.most_splits;
  p.longest = workspace.longest;
  p.partial_lists = workspace.partial_lists;
  if (capacity == kNoList) {
    const openmsa_tensor& scores = problem.tensors.block_scores;
    p.block_scores = score_view(scores);
    p.score_columns = static_cast<std::int32_t>(scores.shape[2]);
    p.index_scale = static_cast<float>(plan.index_scale);
  }
  const std::int64_t tiles = max_tiles(problem.total_q, problem.batch, p.queries_per_tile);
  generic::index_served(p.batch, p.index, p.queries_per_tile, served, workspace.longest, launch);
  find_variant(kPromptVariants, select_key(plan), "select")(p, capacity, static_cast<int>(tiles), launch);
  if (p.most_splits > 1) launch_merge(p, capacity, launch);
}

void select_decode(const Problem& problem, QueryRange served, const Workspace& workspace, Launch launch) {
  const Plan& plan = problem.plan;
  const bool is_mixture = !served.is_open(), has_one_each = !is_mixture && problem.total_q <= problem.batch;
  SelectParams p = select_params(problem, workspace, has_one_each ? 1 : decode_tile_queries(plan));
  p.scores = workspace.scores;
  p.padded_columns = padded_columns(plan);
  p.is_mixture = is_mixture;
  const std::int64_t of_mixture = problem.batch * ceil_div(decode_queries(plan), p.queries_per_tile);
  const std::int64_t tiles = std::min(problem.total_q, is_mixture ? of_mixture : problem.total_q);
  generic::index_served(p.batch, p.index, p.queries_per_tile, served, nullptr, launch);
  find_variant(kDecodeVariants, select_key(plan), "select")(p, launch);
  launch_choose(p, static_cast<int>(tiles), launch);
}

}  // namespace

std::size_t block_scores_bytes(const Plan& plan) {
  Arena arena;
  Workspace(arena, plan, kNoList);
  return arena.used();
}

std::size_t select_blocks_bytes(const Plan& plan) {
  Arena arena;
  Workspace(arena, plan, list_capacity(plan));
  return arena.used();
}

void block_scores(const Problem& problem, Arena arena, Launch launch) {
  const Workspace workspace(arena, problem.plan, kNoList);
  select_prompts(problem, kAllSequences, workspace, kNoList, launch);
}

void select_blocks(const Problem& problem, Arena arena, Launch launch) {
  const int capacity = list_capacity(problem.plan);
  const Workspace workspace(arena, problem.plan, capacity);
  const Route served = route({problem.total_q, problem.batch}, decode_queries(problem.plan));
  if (!served.decode.is_empty()) select_decode(problem, served.decode, workspace, launch);
  if (!served.prefill.is_empty()) select_prompts(problem, served.prefill, workspace, capacity, launch);
}

}  // namespace openmsa::cuda::sm80::select
