// The selection of whole sequences from the candidates of all their shards.

#include <algorithm>
#include <array>

#include "cpu/stages.h"
#include "cpu/topk.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

using core::Ranked;

/// The best `slots` of one row's candidates in all shards, whose rows descend.
std::span<const ScoredBlock> best_of_shards(const openmsa_tensor& all, std::int64_t head, std::int64_t row,
                                            std::int64_t slots, std::array<ScoredBlock, 64>& chosen) {
  std::array<Ranked, 64> best;
  std::int64_t size = 0;
  for (std::int64_t shard = 0; shard < all.shape[0]; ++shard) {
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      const Ranked candidate = core::element<Ranked>(all, shard, head, row, slot);
      if (candidate == core::kNoCandidate || (size == slots && candidate < best[slots - 1])) break;
      std::int64_t place = size < slots ? size++ : slots - 1;
      for (; place > 0 && candidate > best[place - 1]; --place) best[place] = best[place - 1];
      best[place] = candidate;
    }
  }
  for (std::int64_t i = 0; i < size; ++i) chosen[i] = {0, core::block_of(best[i])};
  return {chosen.data(), static_cast<std::size_t>(size)};
}

}  // namespace

void merge_candidates(const Problem& problem, Arena&, const Loops& loops) {
  const Plan& plan = problem.plan;
  const openmsa_tensors& tensors = problem.tensors;
  for_each_item(
      problem, loops, [](const Sequence& sequence) { return sequence.seqlen_q; },
      [&](const Item& item, int) {
        const std::int64_t row = item.sequence.q_begin + item.index;
        const Candidates candidates(plan, item.sequence.position(item.index));
        for (std::int64_t head = 0; head < plan.config.num_heads_kv; ++head) {
          std::array<ScoredBlock, 64> chosen;
          const auto best = best_of_shards(tensors.all_candidates, head, row, candidates.slots, chosen);
          write_selection(tensors.topk_indices, head, row, candidates, best);
        }
      });
  write_query_padding(problem, tensors.topk_indices, 1, -1);
}

}  // namespace openmsa::cpu
