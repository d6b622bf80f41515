// The selection of whole sequences in parts: each shard's best kv_blocks with their scores in fp32, and the best of those.
#include "core/candidates.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "ref/stages.h"

namespace openmsa::ref {
namespace {

using core::Ranked;

/// The first `slots` of `ranked` in descending order, or as many as there are.
std::vector<Ranked> best(std::vector<Ranked> ranked, std::int64_t slots) {
  std::sort(ranked.begin(), ranked.end(), std::greater<>());
  if (std::ssize(ranked) > slots) ranked.resize(static_cast<std::size_t>(slots));
  return ranked;
}

}  // namespace

template <class C>
void run_select_candidates(const core::Problem& problem) {
  const openmsa_tensor& out = problem.tensors.candidates;
  for (const core::Sequence& sequence : sequences(problem)) {
    const auto scores = block_scores<C>(problem, sequence);
    for (std::int64_t r = 0; r < out.shape[0]; ++r) {
      for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
        const core::Candidates competing(problem.plan, sequence.position(t));
        std::vector<Ranked> ranked;
        for (std::int64_t b = competing.init; b < competing.end; ++b) {
          if (!problem.plan.holds(b)) continue;
          const auto score = static_cast<float>(scores(r, t, b));
          ranked.push_back(core::rank_of_key(core::score_key(score), static_cast<std::int32_t>(b)));
        }
        auto written = best(ranked, competing.slots);
        written.resize(static_cast<std::size_t>(out.shape[2]), core::kNoCandidate);
        for (std::int64_t slot = 0; slot < out.shape[2]; ++slot) {
          core::element<Ranked>(out, r, sequence.q_begin + t, slot) = written[static_cast<std::size_t>(slot)];
        }
      }
    }
  }
}

void run_merge_candidates(const core::Problem& problem) {
  const openmsa_config& config = problem.plan.config;
  const openmsa_tensor& all = problem.tensors.all_candidates;
  for (const core::Sequence& sequence : sequences(problem)) {
    Selection selection(config.num_heads_kv, sequence.seqlen_q, config.topk, -1);
    for (std::int64_t r = 0; r < config.num_heads_kv; ++r) {
      for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
        const core::Candidates competing(problem.plan, sequence.position(t));
        std::vector<Ranked> ranked;
        for (std::int64_t shard = 0; shard < all.shape[0]; ++shard) {
          for (std::int64_t slot = 0; slot < all.shape[3]; ++slot) {
            const auto candidate = core::element<Ranked>(all, shard, r, sequence.q_begin + t, slot);
            if (candidate != core::kNoCandidate) ranked.push_back(candidate);
          }
        }
        std::vector<std::int32_t> chosen;
        for (const Ranked candidate : best(ranked, competing.slots)) chosen.push_back(core::block_of(candidate));
        for (std::int64_t b = 0; b < competing.init; ++b) chosen.push_back(static_cast<std::int32_t>(b));
        for (std::int64_t n = 0; n < competing.local; ++n) {
          chosen.push_back(static_cast<std::int32_t>(competing.end + n));
        }
        std::sort(chosen.begin(), chosen.end());
        std::copy(chosen.begin(), chosen.end(), selection.row(r, t));
      }
    }
    store_selection(problem, sequence, selection);
  }
}

template void run_select_candidates<double>(const core::Problem&);
template void run_select_candidates<float>(const core::Problem&);

}  // namespace openmsa::ref
