// Teacher and student of the KL loss on one tile: the main branch's mean probabilities and the index scores of up to
// kMaxColumns query rows of one KV head against one kv_block.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "core/problem.h"
#include "cpu/products.h"
#include "cpu/visits.h"

namespace openmsa::cpu {

/// Keys of one kv_block for both branches.
struct KlKeys {
  KlKeys(core::Arena& arena, const core::Plan& plan);
  void load(const core::Problem& problem, const core::Sequence& sequence, std::int64_t head, std::int64_t block);

  ScoreProduct k, index_k;
  std::int64_t begin = 0, count = 0;
};

struct KlTile {
  KlTile(core::Arena& arena, const core::Plan& plan);

  /// `heads` has the query rows of KV head `head`, all group_size heads of each query; index_lse is [total_q] of
  /// `head`.
  void compute(const core::Problem& problem, const core::Sequence& sequence, const Columns& heads, std::int64_t head,
               const KlKeys& keys, const float* index_lse);

  ScoreQueries q, index_q;
  Columns index_columns;  // one column per query
  float* p;               // [block_size][kMaxColumns] probabilities of each head
  float* teacher;         // [block_size][kMaxColumns] P, their mean over the group's heads
  float* scores;          // [block_size][kMaxColumns] s_idx
  float *limit, *lse;     // of the heads' columns
  float *index_limit, *index_lse;
  float* weight;  // w of the queries
  bool is_partial = false;
};

/// Whether a query counts in the loss of one KV head: its weight is not 0 and it saw something.
bool counts_in_kl(const core::Problem& problem, const core::Sequence& sequence, std::int64_t head, std::int64_t query);

/// Runs body(heads) over chunks of those queries of a visit that count. The others are not even looked at: NaN times 0
/// would be NaN.
template <class Body>
void for_each_kl_chunk(const core::Problem& problem, const core::Sequence& sequence, const Visit& visit,
                       std::int64_t head, const Body& body) {
  const std::int64_t group = problem.plan.group_size;
  for_each_chunk(visit.queries, visit.count, head * group, group, [&](const Columns& heads) {
    std::int32_t queries[kMaxColumns];
    const auto* const end = std::copy_if(heads.queries, heads.queries + heads.count, queries, [&](std::int32_t query) {
      return counts_in_kl(problem, sequence, head, query);
    });
    if (end != queries) body(Columns{queries, end - queries, heads.head, heads.heads});
  });
}

/// The ablation's gradients d_q and d_k through the teacher. index_lse is [num_heads_kv][total_q].
void kl_teacher_backward(const core::Problem& problem, core::Arena& arena, const Loops& loops, const Visitors& visitors,
                         const float* index_lse);
void plan_kl_teacher_backward(const core::Plan& plan, core::Arena& arena);

}  // namespace openmsa::cpu
