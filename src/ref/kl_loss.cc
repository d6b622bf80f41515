// The loss that trains the index branch: the sum over query rows and KV heads of w[i] KL(P || P_idx) over T(t,r).
#include <cmath>
#include <optional>
#include <vector>

#include "ref/softmax.h"
#include "ref/stages.h"

namespace openmsa::ref {
namespace {

template <class C>
struct Inputs {
  Array<C> q, k, lse, index_q, index_k;
};

template <class C>
struct Gradients {
  Array<C> d_q, d_k, d_index_q, d_index_k;
};

/// Both distributions of one query and KV head over its tokens.
template <class C>
struct Distributions {
  std::vector<std::vector<C>> heads;  // [group_size][tokens]: p[h,j] = exp(softmax_scale q.k - lse)
  std::vector<C> teacher;             // P = mean over the heads
  std::vector<C> log_student;         // log P_idx

  /// log(P / P_idx) of the n-th token; 0 where P is 0, which adds nothing to the loss.
  C log_ratio(std::size_t n) const { return teacher[n] == 0 ? C(0) : std::log(teacher[n]) - log_student[n]; }
};

template <class C>
Distributions<C> distributions(const core::Plan& plan, const Inputs<C>& in, const std::vector<std::int64_t>& tokens,
                               std::int64_t t, std::int64_t r) {
  Distributions<C> result;
  result.teacher.assign(tokens.size(), 0);
  for (std::int64_t h = r * plan.group_size; h < (r + 1) * plan.group_size; ++h) {
    std::vector<C>& p = result.heads.emplace_back();
    for (std::size_t n = 0; n < tokens.size(); ++n) {
      const C score = C(plan.softmax_scale) * dot(in.q.row(t, h), in.k.row(tokens[n], r), in.q.size(2));
      p.push_back(in.lse(t, h) == -kInfinity<C> ? C(0) : std::exp(score - in.lse(t, h)));
      result.teacher[n] += p[n] / C(plan.group_size);
    }
  }
  for (const std::int64_t j : tokens) {
    result.log_student.push_back(C(plan.index_scale) *
                                 dot(in.index_q.row(t, r), in.index_k.row(j, 0), in.index_q.size(2)));
  }
  const C lse = log_sum_exp(result.log_student);
  for (C& log_p : result.log_student) log_p -= lse;
  return result;
}

/// g = weight (P_idx - P),  d index_q = index_scale sum_j g index_k,  d index_k = index_scale sum g index_q
template <class C>
void add_student_gradient(const core::Plan& plan, const Inputs<C>& in, const Distributions<C>& p,
                          const std::vector<std::int64_t>& tokens, std::int64_t t, std::int64_t r, C weight,
                          Gradients<C>& out) {
  for (std::size_t n = 0; n < tokens.size(); ++n) {
    const C g = (std::exp(p.log_student[n]) - p.teacher[n]) * weight;
    const std::int64_t j = tokens[n];
    add_scaled(out.d_index_q.row(t, r), C(plan.index_scale) * g, in.index_k.row(j, 0), in.index_k.size(2));
    add_scaled(out.d_index_k.row(j, 0), C(plan.index_scale) * g, in.index_q.row(t, r), in.index_q.size(2));
  }
}

/// The ablation in which the teacher learns too:
///   u = weight log(P / P_idx) / group_size,  ds[h,j] = p[h,j] (u[j] - sum_j p[h,j] u[j])
template <class C>
void add_teacher_gradient(const core::Plan& plan, const Inputs<C>& in, const Distributions<C>& p,
                          const std::vector<std::int64_t>& tokens, std::int64_t t, std::int64_t r, C weight,
                          Gradients<C>& out) {
  for (std::int64_t g = 0; g < plan.group_size; ++g) {
    const std::int64_t h = r * plan.group_size + g;
    const std::vector<C>& p_head = p.heads[static_cast<std::size_t>(g)];
    C mean = 0;
    for (std::size_t n = 0; n < tokens.size(); ++n) mean += p_head[n] * p.log_ratio(n);
    for (std::size_t n = 0; n < tokens.size(); ++n) {
      const C ds = p_head[n] * (p.log_ratio(n) - mean) * weight / C(plan.group_size);
      const std::int64_t j = tokens[n];
      add_scaled(out.d_q.row(t, h), C(plan.softmax_scale) * ds, in.k.row(j, r), in.k.size(2));
      add_scaled(out.d_k.row(j, r), C(plan.softmax_scale) * ds, in.q.row(t, h), in.q.size(2));
    }
  }
}

/// Whether lse is -inf for all heads of group r: query t saw nothing.
template <class C>
bool saw_nothing(const core::Plan& plan, const Array<C>& lse, std::int64_t t, std::int64_t r) {
  for (std::int64_t h = r * plan.group_size; h < (r + 1) * plan.group_size; ++h) {
    if (lse(t, h) != -kInfinity<C>) return false;
  }
  return true;
}

/// Adds one sequence's share of the loss, and stores its rows of the gradients that are asked for.
template <class C>
C sequence_loss(const core::Problem& problem, const core::Sequence& s, const Selection* selection) {
  const core::Plan& plan = problem.plan;
  const openmsa_config& config = plan.config;
  const openmsa_tensors& tensors = problem.tensors;
  const Inputs<C> in{load_rows<C>(tensors.q, s.q_begin, s.seqlen_q), load_k<C>(problem, s),
                     load_rows<C>(tensors.lse, s.q_begin, s.seqlen_q),
                     load_rows<C>(tensors.index_q, s.q_begin, s.seqlen_q), load_index_k<C>(problem, s)};
  Gradients<C> out{Array<C>(s.seqlen_q, config.num_heads_q, config.head_dim),
                   Array<C>(s.seqlen_k, config.num_heads_kv, config.head_dim),
                   Array<C>(s.seqlen_q, config.num_heads_kv, config.index_dim),
                   Array<C>(s.seqlen_k, 1, config.index_dim)};
  C loss = 0;
  for (std::int64_t t = 0; t < s.seqlen_q; ++t) {
    const C weight(problem.kl_weight(s.q_begin + t));
    for (std::int64_t r = 0; r < config.num_heads_kv; ++r) {
      if (weight == 0 || saw_nothing(plan, in.lse, t, r)) continue;
      const auto tokens = visible_tokens(plan, s, selection, t, r);
      const auto p = distributions(plan, in, tokens, t, r);
      for (std::size_t n = 0; n < tokens.size(); ++n) loss += p.teacher[n] * p.log_ratio(n) * weight;
      add_student_gradient(plan, in, p, tokens, t, r, weight, out);
      add_teacher_gradient(plan, in, p, tokens, t, r, weight, out);
    }
  }
  if (core::present(tensors.d_q)) store_rows(tensors.d_q, s.q_begin, out.d_q);
  if (core::present(tensors.d_k)) store_rows(tensors.d_k, s.k_begin, out.d_k);
  if (core::present(tensors.d_index_q)) store_rows(tensors.d_index_q, s.q_begin, out.d_index_q);
  if (core::present(tensors.d_index_k)) store_rows(tensors.d_index_k, s.k_begin, out.d_index_k);
  return loss;
}

}  // namespace

template <class C>
void run_kl_loss(const core::Problem& problem) {
  const openmsa_tensors& tensors = problem.tensors;
  if (core::present(tensors.d_k)) clear(tensors.d_k);
  if (core::present(tensors.d_index_k)) clear(tensors.d_index_k);
  C loss = 0;
  for (const core::Sequence& sequence : sequences(problem)) {
    std::optional<Selection> selection;
    if (core::present(tensors.topk_indices)) selection = load_selection(problem, sequence);
    loss += sequence_loss<C>(problem, sequence, selection ? &*selection : nullptr);
  }
  if (core::present(tensors.kl_loss)) core::store(tensors.kl_loss, loss, 0);
}

template void run_kl_loss<double>(const core::Problem&);
template void run_kl_loss<float>(const core::Problem&);

}  // namespace openmsa::ref
