// Gradient of attention over T(t,r), from the saved o and lse:
//   p = exp(softmax_scale q.k - lse),  D = d_o.o - d_lse,  ds = p (d_o.v - D)
//   d_q = softmax_scale sum_j ds k,    d_k = softmax_scale sum_t ds q,    d_v = sum_t p d_o
#include <cmath>
#include <optional>

#include "ref/softmax.h"
#include "ref/stages.h"

namespace openmsa::ref {
namespace {

/// [seqlen_q, num_heads_q, 1], zeros where d_lse is absent
template <class C>
Array<C> load_d_lse(const core::Problem& problem, const core::Sequence& sequence) {
  const openmsa_tensor& d_lse = problem.tensors.d_lse;
  if (!core::present(d_lse)) return Array<C>(sequence.seqlen_q, problem.plan.config.num_heads_q, 1);
  return load_rows<C>(d_lse, sequence.q_begin, sequence.seqlen_q);
}

template <class C>
void backward(const core::Problem& problem, const core::Sequence& sequence, const Selection* selection) {
  const core::Plan& plan = problem.plan;
  const core::Sequence& s = sequence;
  const std::int64_t head_dim = plan.config.head_dim;
  const auto q = load_rows<C>(problem.tensors.q, s.q_begin, s.seqlen_q);
  const auto k = load_k<C>(problem, s);
  const auto v = load_v<C>(problem, s);
  const auto o = load_rows<C>(problem.tensors.o, s.q_begin, s.seqlen_q);
  const auto lse = load_rows<C>(problem.tensors.lse, s.q_begin, s.seqlen_q);
  const auto d_o = load_rows<C>(problem.tensors.d_o, s.q_begin, s.seqlen_q);
  const auto d_lse = load_d_lse<C>(problem, s);
  const C scale(plan.softmax_scale);
  Array<C> d_q(s.seqlen_q, plan.config.num_heads_q, head_dim);
  Array<C> d_k(s.seqlen_k, plan.config.num_heads_kv, head_dim);
  Array<C> d_v(s.seqlen_k, plan.config.num_heads_kv, head_dim);
  for (std::int64_t t = 0; t < s.seqlen_q; ++t) {
    for (std::int64_t h = 0; h < plan.config.num_heads_q; ++h) {
      if (lse(t, h) == -kInfinity<C>) continue;
      const std::int64_t r = h / plan.group_size;
      const C d = dot(d_o.row(t, h), o.row(t, h), head_dim) - d_lse(t, h);
      for (const std::int64_t j : visible_tokens(plan, s, selection, t, r)) {
        const C p = std::exp(scale * dot(q.row(t, h), k.row(j, r), head_dim) - lse(t, h));
        const C ds = p * (dot(d_o.row(t, h), v.row(j, r), head_dim) - d);
        add_scaled(d_q.row(t, h), scale * ds, k.row(j, r), head_dim);
        add_scaled(d_k.row(j, r), scale * ds, q.row(t, h), head_dim);
        add_scaled(d_v.row(j, r), p, d_o.row(t, h), head_dim);
      }
    }
  }
  store_rows(problem.tensors.d_q, s.q_begin, d_q);
  store_rows(problem.tensors.d_k, s.k_begin, d_k);
  store_rows(problem.tensors.d_v, s.k_begin, d_v);
}

}  // namespace

template <class C>
void run_attention_backward(const core::Problem& problem) {
  clear(problem.tensors.d_k);
  clear(problem.tensors.d_v);
  for (const core::Sequence& sequence : sequences(problem)) {
    std::optional<Selection> selection;
    if (core::present(problem.tensors.topk_indices)) selection = load_selection(problem, sequence);
    backward<C>(problem, sequence, selection ? &*selection : nullptr);
  }
}

template void run_attention_backward<double>(const core::Problem&);
template void run_attention_backward<float>(const core::Problem&);

}  // namespace openmsa::ref
