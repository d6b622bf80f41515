// The ablation without the teacher's stop-gradient: d_q and d_k of the KL loss through P.
//
//   u[j] = w[i] log(P / P_idx) / group_size,  E[i,h] = sum_j p[i,h,j] u[j],  ds = p (u - E)
//   d_q = softmax_scale * sum_j ds k,  d_k = softmax_scale * sum_{i,h} ds q

#include <algorithm>

#include "cpu/kl_tile.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

using core::address;

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : width(pad_lanes(plan.config.head_dim)),
        visits(arena, plan, queries_per_tile(plan)),
        keys(arena, plan),
        tile(arena, plan),
        over_keys(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)),
        over_queries(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)),
        ds(arena.take<float>(plan.config.block_size * kMaxColumns)),
        delta(arena.take<float>(kMaxColumns)),
        d_q(arena.take<float>(queries_per_tile(plan) * plan.group_size * width)),
        d_k(arena.take<float>(plan.config.block_size * width)),
        product(arena.take<float>(kMaxColumns * width)) {}

  std::int64_t width;
  TileVisits visits;
  KlKeys keys;
  KlTile tile;
  ValueProduct over_keys;     // sum_j ds k
  QueryProduct over_queries;  // sum_{i,h} ds q
  float* ds;                  // [block_size][kMaxColumns]
  float* delta;               // E of the columns
  float* d_q;                 // [query rows of a tile][width]
  float* d_k;                 // [block_size][width]
  float* product;             // [kMaxColumns][width]
};

struct Workspace {
  Workspace(Arena& arena, const Plan& plan)
      : threads(arena, plan), expectation(arena.take<float>(plan.config.max_total_q * plan.config.num_heads_q)) {}
  PerThread<Scratch> threads;
  float* expectation;  // E [total_q][num_heads_q]
};

/// s.ds = u[j], repeated for the heads of each query; the tile is computed first.
void compute_ratios(const Problem& problem, const Sequence& sequence, const Columns& heads, std::int64_t head,
                    const float* index_lse, Scratch& s) {
  KlTile& tile = s.tile;
  tile.compute(problem, sequence, heads, head, s.keys, index_lse + head * problem.total_q);
  tile_ops().teacher_columns(tile.teacher, tile.scores, kMaxColumns, s.keys.count, tile.index_columns.padded(),
                             tile.index_limit, tile.index_lse, tile.weight);
  const float share = 1 / static_cast<float>(heads.heads);
  for (std::int64_t j = 0; j < s.keys.count; ++j) {
    const float* ratio = tile.scores + j * kMaxColumns;
    for (std::int64_t c = 0; c < heads.padded(); ++c) {
      s.ds[j * kMaxColumns + c] = c < heads.size() ? ratio[c / heads.heads] * share : 0;
    }
  }
}

/// ds = p (u - E) over u.
void compute_d_scores(const Problem& problem, const Sequence& sequence, const Columns& heads, const float* expectation,
                      Scratch& s) {
  for (std::int64_t c = 0; c < heads.size(); ++c) {
    const std::int64_t row = sequence.q_begin + heads.queries[c / heads.heads];
    s.delta[c] = expectation[row * problem.plan.config.num_heads_q + heads.head + c % heads.heads];
  }
  std::fill(s.delta + heads.size(), s.delta + heads.padded(), 0.0f);  // no row of another thread's
  tile_ops().d_scores(s.tile.p, s.ds, kMaxColumns, s.keys.count, heads.padded(), s.delta);
}

/// Runs body(columns) for all visits of a tile of queries with u computed.
template <class Body>
void for_each_visit(const Problem& problem, const HeadTile& tile, const float* index_lse, Scratch& s,
                    const Body& body) {
  begin_visits(s.visits, problem, tile);
  Visit visit;
  while (s.visits.next(visit)) {
    s.keys.load(problem, tile.sequence, tile.head, visit.block);
    s.over_keys.load({problem.k(tile.sequence, tile.head), s.keys.begin, s.keys.count});
    for_each_kl_chunk(problem, tile.sequence, visit, tile.head, [&](const Columns& heads) {
      compute_ratios(problem, tile.sequence, heads, tile.head, index_lse, s);
      body(heads);
    });
  }
}

void query_gradients(const Problem& problem, const HeadTile& tile, const float* index_lse, float* expectation,
                     Scratch& s) {
  const Plan& plan = problem.plan;
  const Sequence& sequence = tile.sequence;
  const std::int64_t head = tile.head, first = tile.first, count = tile.count;
  const std::int64_t group = plan.group_size, heads_q = plan.config.num_heads_q;
  for (std::int64_t t = first; t < first + count; ++t) {
    std::fill_n(expectation + (sequence.q_begin + t) * heads_q + head * group, group, 0.0f);
  }
  for_each_visit(problem, tile, index_lse, s, [&](const Columns& heads) {
    for (std::int64_t c = 0; c < heads.size(); ++c) {
      float sum = 0;
      for (std::int64_t j = 0; j < s.keys.count; ++j) sum += s.tile.p[j * kMaxColumns + c] * s.ds[j * kMaxColumns + c];
      expectation[(sequence.q_begin + heads.queries[c / group]) * heads_q + heads.head + c % group] += sum;
    }
  });
  if (!core::present(problem.tensors.d_q)) return;
  std::fill_n(s.d_q, count * group * s.width, 0.0f);
  for_each_visit(problem, tile, index_lse, s, [&](const Columns& heads) {
    compute_d_scores(problem, sequence, heads, expectation, s);
    s.over_keys.multiply(s.ds, heads.size(), s.tile.limit, s.tile.is_partial, s.product, false);
    add_rows(s.product, s.width, heads, first, s.d_q);
  });
  store_rows(s.d_q, s.width, static_cast<float>(plan.softmax_scale), sequence, first, count, head, group,
             problem.tensors.d_q);
}

void key_gradients(const Problem& problem, const HeadBlock& at, const Visitors& visitors, const float* index_lse,
                   const float* expectation, Scratch& s) {
  const std::int64_t head = at.head;
  const Sequence& sequence = at.sequence;
  const Visit visit = visitors.of(problem, at);
  s.keys.load(problem, sequence, head, at.block);
  std::fill_n(s.d_k, s.keys.count * s.width, 0.0f);
  for_each_kl_chunk(problem, sequence, visit, head, [&](const Columns& heads) {
    compute_ratios(problem, sequence, heads, head, index_lse, s);
    compute_d_scores(problem, sequence, heads, expectation, s);
    s.over_queries.add(s.tile.q, s.ds, s.keys.count, heads.size(), s.tile.limit, s.tile.is_partial, s.d_k);
  });
  const openmsa_tensor& d_k = problem.tensors.d_k;
  for (std::int64_t j = 0; j < s.keys.count; ++j) {
    store_row(s.d_k + j * s.width, s.tile.q.scale(), problem.plan.config.head_dim, d_k.dtype,
              address(d_k, sequence.k_begin + s.keys.begin + j, head));
  }
}

}  // namespace

void plan_kl_teacher_backward(const Plan& plan, Arena& arena) { Workspace(arena, plan); }

void kl_teacher_backward(const Problem& problem, Arena& arena, const Loops& loops, const Visitors& visitors,
                         const float* index_lse) {
  const Workspace workspace(arena, problem.plan);
  for_each_query_tile(problem, loops, [&](const HeadTile& tile, int slot) {
    Scratch s = workspace.threads[slot];
    query_gradients(problem, tile, index_lse, workspace.expectation, s);
  });
  if (!core::present(problem.tensors.d_k)) return;
  for_each_key_block(problem, loops, [&](const HeadBlock& at, int slot) {
    Scratch s = workspace.threads[slot];
    key_gradients(problem, at, visitors, index_lse, workspace.expectation, s);
  });
}

}  // namespace openmsa::cpu
