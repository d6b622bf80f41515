// Block scores to memory, for callers who bring their own selection.

#include <algorithm>

#include "cpu/index_tile.h"
#include "cpu/stages.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

using core::element;

using Workspace = PerThread<IndexTile>;

}  // namespace

void plan_block_scores(const Plan& plan, Arena& arena) { Workspace(arena, plan); }

void block_scores(const Problem& problem, Arena& arena, const Loops& loops) {
  const Plan& plan = problem.plan;
  const openmsa_tensor& scores = problem.tensors.block_scores;
  const Workspace workspace(arena, plan);
  const std::int64_t queries = index_queries_per_tile(plan), heads = plan.config.num_heads_kv;
  for_each_item(
      problem, loops, [&](const Sequence& sequence) { return core::ceil_div(sequence.seqlen_q, queries); },
      [&](const Item& item, int slot) {
        IndexTile tile = workspace[slot];
        const std::int64_t first = item.index * queries;
        const std::int64_t count = std::min(queries, item.sequence.seqlen_q - first);
        const std::int64_t blocks = num_blocks(plan, item.sequence);
        tile.load(problem, item.sequence, first, count);
        for (std::int64_t b = 0; b < scores.shape[2]; ++b) {
          if (b < blocks) {
            tile.score(problem, item.sequence, b, blocks);
          } else {
            std::fill_n(tile.top, tile.columns.size(), -kInfinity);
          }
          for (std::int64_t c = 0; c < tile.columns.size(); ++c) {
            element<float>(scores, c % heads, item.sequence.q_begin + first + c / heads, b) = tile.top[c];
          }
        }
      });
  write_query_padding(problem, scores, 1, -kInfinity);
}

}  // namespace openmsa::cpu
