// Main branch: exact attention over T(t,r), which is everything visible (dense) or the chosen kv_blocks (sparse).
#include <cmath>
#include <vector>

#include "ref/softmax.h"
#include "ref/stages.h"

namespace openmsa::ref {

template <class C>
Attention<C> attend(const core::Problem& problem, const core::Sequence& sequence, const Selection* selection) {
  const core::Plan& plan = problem.plan;
  const std::int64_t num_heads_q = plan.config.num_heads_q;
  const std::int64_t head_dim = plan.config.head_dim;
  const auto q = load_rows<C>(problem.tensors.q, sequence.q_begin, sequence.seqlen_q);
  const auto k = load_k<C>(problem, sequence);
  const auto v = load_v<C>(problem, sequence);
  Attention<C> result{Array<C>(sequence.seqlen_q, num_heads_q, head_dim),
                      Array<C>(sequence.seqlen_q, num_heads_q, 1, -kInfinity<C>)};
  for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
    for (std::int64_t h = 0; h < num_heads_q; ++h) {
      const std::int64_t r = h / plan.group_size;
      const auto tokens = visible_tokens(plan, sequence, selection, t, r);
      std::vector<C> scores;
      for (const std::int64_t j : tokens) {
        scores.push_back(C(plan.softmax_scale) * dot(q.row(t, h), k.row(j, r), head_dim));
      }
      const C lse = log_sum_exp(scores);
      result.lse(t, h) = lse;
      if (lse == -kInfinity<C>) continue;  // nothing to attend to: o = 0
      for (std::size_t n = 0; n < tokens.size(); ++n) {
        add_scaled(result.o.row(t, h), std::exp(scores[n] - lse), v.row(tokens[n], r), head_dim);
      }
    }
  }
  return result;
}

namespace {

template <class C>
void attend_and_store(const core::Problem& problem, const core::Sequence& sequence, const Selection* selection) {
  const auto result = attend<C>(problem, sequence, selection);
  store_rows(problem.tensors.o, sequence.q_begin, result.o);
  if (core::present(problem.tensors.lse)) store_rows(problem.tensors.lse, sequence.q_begin, result.lse);
}

}  // namespace

template <class C>
void run_sparse_attention(const core::Problem& problem) {
  for (const core::Sequence& sequence : sequences(problem)) {
    const Selection selection = load_selection(problem, sequence);
    attend_and_store<C>(problem, sequence, &selection);
  }
}

template <class C>
void run_msa_attention(const core::Problem& problem) {
  for (const core::Sequence& sequence : sequences(problem)) {
    const Selection selection = choose_blocks(problem.plan, sequence, block_scores<C>(problem, sequence));
    if (core::present(problem.tensors.topk_indices)) store_selection(problem, sequence, selection);
    attend_and_store<C>(problem, sequence, &selection);
  }
}

template <class C>
void run_dense_attention(const core::Problem& problem) {
  for (const core::Sequence& sequence : sequences(problem)) attend_and_store<C>(problem, sequence, nullptr);
}

template Attention<double> attend(const core::Problem&, const core::Sequence&, const Selection*);
template Attention<float> attend(const core::Problem&, const core::Sequence&, const Selection*);
template void run_sparse_attention<double>(const core::Problem&);
template void run_sparse_attention<float>(const core::Problem&);
template void run_msa_attention<double>(const core::Problem&);
template void run_msa_attention<float>(const core::Problem&);
template void run_dense_attention<double>(const core::Problem&);
template void run_dense_attention<float>(const core::Problem&);

}  // namespace openmsa::ref
