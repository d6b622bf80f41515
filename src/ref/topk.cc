// Selection: which kv_blocks each query and KV head keeps.
#include <algorithm>
#include <cmath>
#include <vector>

#include "ref/stages.h"

namespace openmsa::ref {
namespace {

/// Visible kv_blocks in the order in which they are taken: the last ones, newest first; the first ones; then the others
/// by score, NaN last, equal scores by block number.
template <class C>
std::vector<std::int32_t> order_of_choice(const C* scores, std::int64_t visible, std::int64_t num_init_blocks,
                                          std::int64_t num_local_blocks) {
  const auto num_local = std::min(num_local_blocks, visible);
  const auto num_init = std::min(num_init_blocks, visible - num_local);
  std::vector<std::int32_t> order;
  for (std::int64_t n = 0; n < num_local; ++n) order.push_back(static_cast<std::int32_t>(visible - 1 - n));
  for (std::int64_t b = 0; b < visible - num_local; ++b) order.push_back(static_cast<std::int32_t>(b));
  std::stable_sort(order.begin() + num_local + num_init, order.end(), [&](std::int32_t x, std::int32_t y) {
    if (std::isnan(scores[x]) || std::isnan(scores[y])) return !std::isnan(scores[x]) && std::isnan(scores[y]);
    return scores[x] > scores[y];
  });
  return order;
}

}  // namespace

template <class C>
Selection choose_blocks(const core::Plan& plan, const core::Sequence& sequence, const Array<C>& scores) {
  const openmsa_config& config = plan.config;
  Selection selection(config.num_heads_kv, sequence.seqlen_q, config.topk, -1);
  for (std::int64_t r = 0; r < config.num_heads_kv; ++r) {
    for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
      const std::int64_t visible = visible_blocks(sequence.position(t), config.block_size);
      auto chosen = order_of_choice(scores.row(r, t), visible, config.num_init_blocks, config.num_local_blocks);
      chosen.resize(static_cast<std::size_t>(std::min<std::int64_t>(config.topk, visible)));
      std::sort(chosen.begin(), chosen.end());
      std::copy(chosen.begin(), chosen.end(), selection.row(r, t));
    }
  }
  return selection;
}

template <class C>
void run_topk(const core::Problem& problem) {
  const core::Plan& plan = problem.plan;
  for (const core::Sequence& sequence : sequences(problem)) {
    Array<C> scores(plan.config.num_heads_kv, sequence.seqlen_q,
                    core::ceil_div(sequence.seqlen_k, plan.config.block_size));
    for (std::int64_t r = 0; r < scores.size(0); ++r) {
      for (std::int64_t t = 0; t < scores.size(1); ++t) {
        for (std::int64_t b = 0; b < visible_blocks(sequence.position(t), plan.config.block_size); ++b) {
          scores(r, t, b) = static_cast<C>(core::load(problem.tensors.block_scores, r, sequence.q_begin + t, b));
        }
      }
    }
    store_selection(problem, sequence, choose_blocks(plan, sequence, scores));
  }
}

template <class C>
void run_select_blocks(const core::Problem& problem) {
  for (const core::Sequence& sequence : sequences(problem)) {
    const auto scores = block_scores<C>(problem, sequence);
    store_selection(problem, sequence, choose_blocks(problem.plan, sequence, scores));
  }
}

template Selection choose_blocks(const core::Plan&, const core::Sequence&, const Array<double>&);
template Selection choose_blocks(const core::Plan&, const core::Sequence&, const Array<float>&);
template void run_topk<double>(const core::Problem&);
template void run_topk<float>(const core::Problem&);
template void run_select_blocks<double>(const core::Problem&);
template void run_select_blocks<float>(const core::Problem&);

}  // namespace openmsa::ref
