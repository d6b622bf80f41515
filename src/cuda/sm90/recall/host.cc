#include "cuda/sm90/recall/host.h"

#include <algorithm>

#include "cuda/common/call.h"
#include "cuda/generic/schedule/kernels.h"
#include "cuda/sm90/dense/host.h"
#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/recall/variants.h"

namespace openmsa::cuda::sm90::recall {
namespace {

using core::Arena;
using core::Plan;
using core::Problem;

struct Workspace {
  Workspace(Arena& arena, const Plan& plan) : prompt(arena, plan) {
    const std::int64_t tile_queries = dense::kPromptRows / plan.group_size;
    const std::int64_t row_bytes = std::int64_t{plan.config.num_heads_kv} * plan.max_blocks * 4;
    tiles = generic::recall::recall_tiles(
        row_bytes * tile_queries, dense::max_tiles(plan.config.max_total_q, plan.config.max_batch, tile_queries));
    mass = arena.take<float>(tiles * tile_queries * plan.config.num_heads_kv * plan.max_blocks);
  }

  dense::PromptWorkspace prompt;
  std::int64_t tiles;  // whose masses it holds
  float* mass;
};

Figure figure(const openmsa_tensor& tensor) {
  return {static_cast<float*>(tensor.data), {tensor.strides[0], tensor.strides[1]}};
}

}  // namespace

std::size_t bytes(const Plan& plan) {
  Arena arena;
  Workspace(arena, plan);
  return arena.used();
}

void run(const Problem& problem, Arena arena, Launch launch) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& t = problem.tensors;
  const Workspace workspace(arena, plan);
  RecallParams p{};
  static_cast<dense::PromptParams&>(p) = dense::prompt_params(problem, workspace.prompt);
  p.max_blocks = static_cast<std::int32_t>(plan.max_blocks);
  p.mass = workspace.mass;
  p.topk_indices = selection_view(t.topk_indices);
  p.topk = plan.config.topk;
  p.block_recall = figure(t.block_recall);
  p.score_recall = figure(t.score_recall);
  generic::index_batch(p.batch, p.index, p.tile_queries, launch);
  const CUtensorMap q = dense::query_map(problem);
  const CUtensorMap k = key_map(problem, t.k, t.k_cache, true, p.key_box_rows, t.q.data);
  RecallFunction* const recall =
      find_variant(kRecallVariants, {plan.config.dtype, plan.config.head_dim}, "block_recall");
  const std::int64_t tiles = dense::max_tiles(problem.total_q, problem.batch, p.tile_queries);
  for (std::int64_t first = 0; first < tiles; first += workspace.tiles) {
    p.first_tile = static_cast<std::int32_t>(first);
    p.tiles = static_cast<std::int32_t>(std::min(workspace.tiles, tiles - first));
    recall(p, q, k, launch);
  }
}

}  // namespace openmsa::cuda::sm90::recall
