#include "cuda/sm90/recall/host.h"

#include "cuda/common/call.h"
#include "cuda/generic/recall/call.h"
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
  generic::recall::set_results(p, problem, workspace.mass);
  generic::index_batch(p.batch, p.index, p.tile_queries, launch);
  const CUtensorMap q = dense::query_map(problem);
  const CUtensorMap k = key_map(problem, t.k, t.k_cache, true, p.key_box_rows, t.q.data);
  RecallFunction* const recall =
      find_variant(kRecallVariants, {plan.config.dtype, plan.config.head_dim}, "block_recall");
  const std::int64_t tiles = dense::max_tiles(problem.total_q, problem.batch, p.tile_queries);
  generic::recall::run_in_parts(p, tiles, workspace.tiles, [&] { recall(p, q, k, launch); });
}

}  // namespace openmsa::cuda::sm90::recall
