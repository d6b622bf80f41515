#include "cpu/topk.h"

#include <algorithm>
#include <array>

#include "cpu/stages.h"
#include "cpu/work.h"

namespace openmsa::cpu {

using core::element;

void write_selection(const openmsa_tensor& topk_indices, std::int64_t head, std::int64_t row,
                     const Candidates& candidates, std::span<const ScoredBlock> chosen) {
  std::array<std::int32_t, 64> blocks;
  std::int64_t count = 0;
  for (std::int64_t b = 0; b < candidates.init; ++b) blocks[count++] = static_cast<std::int32_t>(b);
  for (const ScoredBlock& scored : chosen) blocks[count++] = scored.block;
  std::sort(blocks.begin() + candidates.init, blocks.begin() + count);
  for (std::int64_t b = 0; b < candidates.local; ++b) {
    blocks[count++] = static_cast<std::int32_t>(candidates.end + b);
  }
  for (std::int64_t slot = 0; slot < topk_indices.shape[2]; ++slot) {
    element<std::int32_t>(topk_indices, head, row, slot) = slot < count ? blocks[slot] : -1;
  }
}

void topk(const Problem& problem, Arena&, const Loops& loops) {
  const Plan& plan = problem.plan;
  const openmsa_tensor& scores = problem.tensors.block_scores;
  const openmsa_tensor& indices = problem.tensors.topk_indices;
  const std::int64_t heads = plan.config.num_heads_kv;
  for_each_item(
      problem, loops, [](const Sequence& sequence) { return sequence.seqlen_q; },
      [&](const Item& item, int) {
        const std::int64_t row = item.sequence.q_begin + item.index;
        const Candidates candidates(plan, item.sequence.position(item.index));
        for (std::int64_t head = 0; head < heads; ++head) {
          std::array<ScoredBlock, 64> memory;
          TopkList list(memory.data(), candidates.slots);
          for (std::int64_t b = candidates.init; candidates.slots > 0 && b < candidates.end; ++b) {
            list.offer({score_key(element<float>(scores, head, row, b)), static_cast<std::int32_t>(b)});
          }
          write_selection(indices, head, row, candidates, list.entries());
        }
      });
  write_query_padding(problem, indices, 1, -1);
}

}  // namespace openmsa::cpu
