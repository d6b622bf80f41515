#include "cuda/sm80/recall/host.h"

#include <bit>

#include "cuda/generic/recall/call.h"
#include "cuda/generic/schedule/kernels.h"
#include "cuda/sm80/call.h"
#include "cuda/sm80/recall/variants.h"

namespace openmsa::cuda::sm80::recall {
namespace {

using core::Arena;
using core::Plan;
using core::Problem;

struct Workspace {
  Workspace(Arena& arena, const Plan& plan)
      : index{arena.take<std::int32_t>(plan.config.max_batch + 2), arena.take<std::int32_t>(plan.config.max_batch + 1)},
        tile_queries(static_cast<std::int32_t>(kRows / plan.group_size)) {
    const std::int64_t heads_and_blocks = plan.config.num_heads_kv * plan.max_blocks;
    tiles = generic::recall::recall_tiles(heads_and_blocks * tile_queries * 4,
                                          max_tiles(plan.config.max_total_q, plan.config.max_batch, tile_queries));
    mass = arena.take<float>(tiles * tile_queries * heads_and_blocks);
  }

  BatchIndex index;
  std::int32_t tile_queries;
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
  p.batch = batch_view(problem);
  p.index = workspace.index;
  p.tile_queries = workspace.tile_queries;
  p.heads = plan.config.num_heads_kv;
  p.log2_group_size = std::countr_zero(static_cast<std::uint64_t>(plan.group_size));
  p.q = query_rows(t.q);
  p.k = key_tensor(problem, t.k, t.k_cache, true);
  p.scale_log2 = scale_log2(plan);
  generic::recall::set_results(p, problem, workspace.mass);
  generic::index_batch(p.batch, p.index, p.tile_queries, launch);
  RecallFunction* const recall =
      find_variant(kRecallVariants, {plan.config.dtype, plan.config.head_dim}, "block_recall");
  const std::int64_t tiles = max_tiles(problem.total_q, problem.batch, p.tile_queries);
  generic::recall::run_in_parts(p, tiles, workspace.tiles, [&] { recall(p, launch); });
}

}  // namespace openmsa::cuda::sm80::recall
