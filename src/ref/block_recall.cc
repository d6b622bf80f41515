// Health of a selection: how much of dense attention it catches.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ref/softmax.h"
#include "ref/stages.h"

namespace openmsa::ref {
namespace {

/// mass[b] = mean over the group's heads of the dense attention probability that falls in kv_block b
template <class C>
std::vector<C> block_mass(const core::Plan& plan, const core::Sequence& sequence, const Array<C>& q, const Array<C>& k,
                          std::int64_t t, std::int64_t r) {
  const std::int64_t block_size = plan.config.block_size;
  const auto tokens = visible_tokens(plan, sequence, nullptr, t, r);
  std::vector<C> mass(static_cast<std::size_t>(visible_blocks(sequence.position(t), block_size)));
  for (std::int64_t h = r * plan.group_size; h < (r + 1) * plan.group_size; ++h) {
    std::vector<C> scores;
    for (const std::int64_t j : tokens) {
      scores.push_back(C(plan.softmax_scale) * dot(q.row(t, h), k.row(j, r), plan.config.head_dim));
    }
    const C lse = log_sum_exp(scores);
    for (const std::int64_t j : tokens) {
      mass[static_cast<std::size_t>(j / block_size)] +=
          std::exp(scores[static_cast<std::size_t>(j)] - lse) / C(plan.group_size);
    }
  }
  return mass;
}

/// The `count` blocks of highest mass; equal mass: the lower block.
template <class C>
std::vector<std::int64_t> heaviest_blocks(const std::vector<C>& mass, std::size_t count) {
  std::vector<std::int64_t> blocks(mass.size());
  std::iota(blocks.begin(), blocks.end(), 0);
  std::stable_sort(blocks.begin(), blocks.end(), [&](std::int64_t x, std::int64_t y) {
    return mass[static_cast<std::size_t>(x)] > mass[static_cast<std::size_t>(y)];
  });
  blocks.resize(count);
  return blocks;
}

template <class C>
struct Recall {
  C block;
  C score;
};

/// Both recalls of one query and KV head, whose `chosen` kv_blocks are visible; 1 for a query that sees nothing.
template <class C>
Recall<C> recall(const std::vector<C>& mass, const std::vector<std::int64_t>& chosen) {
  if (mass.empty()) return {1, 1};
  if (chosen.empty()) return {0, 0};
  C found = 0, caught = 0;
  for (const std::int64_t b : heaviest_blocks(mass, chosen.size())) {
    if (std::binary_search(chosen.begin(), chosen.end(), b)) found += 1;
  }
  for (const std::int64_t b : chosen) caught += mass[static_cast<std::size_t>(b)];
  return {found / C(chosen.size()), caught};
}

}  // namespace

template <class C>
void run_block_recall(const core::Problem& problem) {
  const core::Plan& plan = problem.plan;
  const openmsa_tensors& tensors = problem.tensors;
  for (const core::Sequence& sequence : sequences(problem)) {
    const auto q = load_rows<C>(tensors.q, sequence.q_begin, sequence.seqlen_q);
    const auto k = load_k<C>(problem, sequence);
    const Selection selection = load_selection(problem, sequence);
    for (std::int64_t r = 0; r < plan.config.num_heads_kv; ++r) {
      for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
        const auto [block, score] =
            recall(block_mass(plan, sequence, q, k, t, r), chosen_blocks(plan, sequence, selection, t, r));
        if (core::present(tensors.block_recall)) core::store(tensors.block_recall, block, r, sequence.q_begin + t);
        if (core::present(tensors.score_recall)) core::store(tensors.score_recall, score, r, sequence.q_begin + t);
      }
    }
  }
}

template void run_block_recall<double>(const core::Problem&);
template void run_block_recall<float>(const core::Problem&);

}  // namespace openmsa::ref
