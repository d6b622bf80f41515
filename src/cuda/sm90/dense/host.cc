#include "cuda/sm90/dense/host.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <bit>

#include "cuda/common/call.h"
#include "cuda/common/error.h"
#include "cuda/common/tensor_map.h"
#include "cuda/generic/schedule/kernels.h"
#include "cuda/sm90/dense/split.h"
#include "cuda/sm90/dense/variants.h"
#include "cuda/sm90/heuristics.h"

namespace openmsa::cuda::sm90::dense {
namespace {

using core::Arena;
using core::Plan;
using core::Problem;

struct DecodeWorkspace {
  DecodeWorkspace(Arena& arena, const Plan& plan) {
    const std::int64_t rows = std::int64_t{kMaxDenseCtas} * kSlots * 16 * kDenseTileQueries;
    partial_o = arena.take<float>(rows * plan.config.head_dim);
    partial_weight = arena.take<float2>(rows);
  }

  float* partial_o;
  float2* partial_weight;
};

std::int32_t log2_group_size(const Plan& plan) { return std::countr_zero(static_cast<std::uint64_t>(plan.group_size)); }

/// Keys of a box of the tensor maps: what a kernel loads at a time, or a page of it.
std::int32_t key_box_rows(const Plan& plan, std::int32_t keys) {
  return plan.is_paged() ? std::min(plan.config.page_size, keys) : keys;
}

void attend_prompt(const Problem& problem, Arena arena, Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  const PromptWorkspace workspace(arena, plan);
  PromptParams p = prompt_params(problem, workspace);
  p.out = output_rows(t);
  check(cudaMemsetAsync(p.next_tile, 0, sizeof(std::int32_t), launch.stream), "cudaMemsetAsync");
  generic::index_batch(p.batch, p.index, p.tile_queries, launch);
  const CUtensorMap k = key_map(problem, t.k, t.k_cache, true, p.key_box_rows, t.q.data);
  const CUtensorMap v = key_map(problem, t.v, t.v_cache, true, p.key_box_rows, t.q.data);
  find_variant(kPromptVariants, {plan.config.dtype, plan.config.head_dim}, "dense_attention")(p, query_map(problem), k,
                                                                                              v, launch);
}

void attend_decode(const Problem& problem, Arena arena, Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  const DecodeWorkspace workspace(arena, plan);
  DecodeParams p{};
  p.select.batch = batch_view(problem);
  p.select.heads = plan.config.num_heads_kv;
  p.log2_group_size = log2_group_size(plan);
  p.key_box_rows = key_box_rows(plan, decode::kTileKeys);
  p.scale_log2 = scale_log2(plan);
  p.k_scale = token_scale(t.k_scale);
  p.v_scale = token_scale(t.v_scale);
  p.q = query_rows(t.q);
  p.out = output_rows(t);
  p.tile_queries = dense_tile_queries(mean_queries(problem.total_q, problem.batch));
  p.ctas = std::min(launch.num_sms, kMaxDenseCtas);
  p.partial_o = workspace.partial_o;
  p.partial_weight = workspace.partial_weight;
  const openmsa_tensor& keys = plan.is_paged() ? t.k_cache : t.k;
  const CUtensorMap k = key_map(problem, t.k, t.k_cache, true, p.key_box_rows, t.q.data);
  const CUtensorMap v = key_map(problem, t.v, t.v_cache, true, p.key_box_rows, t.q.data);
  find_variant(kDecodeVariants, {plan.config.dtype, keys.dtype, plan.config.head_dim}, "dense_attention")(p, k, v,
                                                                                                          launch);
}

}  // namespace

std::int64_t max_tiles(std::int64_t total_q, std::int64_t batch, std::int64_t queries) {
  return core::ceil_div(total_q, queries) + batch + 1;
}

PromptWorkspace::PromptWorkspace(Arena& arena, const Plan& plan)
    : index{arena.take<std::int32_t>(plan.config.max_batch + 2), arena.take<std::int32_t>(plan.config.max_batch + 1)},
      next_tile(arena.take<std::int32_t>(1)) {}

PromptParams prompt_params(const Problem& problem, const PromptWorkspace& workspace) {
  const Plan& plan = problem.plan;
  PromptParams p{};
  p.batch = batch_view(problem);
  p.index = workspace.index;
  p.heads = plan.config.num_heads_kv;
  p.log2_group_size = log2_group_size(plan);
  p.tile_queries = kPromptRows >> p.log2_group_size;
  p.key_box_rows = key_box_rows(plan, kPromptKeys);
  p.scale_log2 = scale_log2(plan);
  p.next_tile = workspace.next_tile;
  return p;
}

CUtensorMap query_map(const Problem& problem) {
  const openmsa_tensor& q = problem.tensors.q;
  const openmsa_config& config = problem.plan.config;
  const auto group = static_cast<std::int32_t>(problem.plan.group_size);
  return make_tensor_map(
      q.data, config.dtype, config.head_dim,
      {{config.num_heads_q, q.strides[1], group}, {problem.total_q, q.strides[0], kPromptRows / 2 / group}, {1, 0, 1}});
}

std::size_t attend_bytes(const Plan& plan) {
  Arena prompt, decode;
  PromptWorkspace(prompt, plan);
  DecodeWorkspace(decode, plan);
  return std::max(prompt.used(), decode.used());
}

void attend(const Problem& problem, Arena arena, Launch launch) {
  const bool is_decode = dense_is_decode(problem.total_q, problem.batch, problem.plan.has_fp8_kv());
  is_decode ? attend_decode(problem, arena, launch) : attend_prompt(problem, arena, launch);
}

}  // namespace openmsa::cuda::sm90::dense
