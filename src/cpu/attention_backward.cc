// Backward of the main branch, sparse and dense, in two passes that both recompute the scores:
//
//   p = exp(softmax_scale q.k - lse),  D[i,h] = d_o[i,h] . o[i,h] - d_lse[i,h],  ds = p * (d_o.v - D)
//   1. per tile of queries:  d_q = softmax_scale * sum_j ds k
//   2. per kv_block:         d_k = softmax_scale * sum_i ds q,   d_v = sum_i p d_o
//
// Each gradient is summed by one work item in one order, so no atomics are needed and every run gives the same bits.

#include <algorithm>

#include "cpu/products.h"
#include "cpu/stages.h"
#include "cpu/visits.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

using core::address;
using core::element;

/// Keys and values of one kv_block as left operands.
struct KvBlock {
  KvBlock(Arena& arena, const Plan& plan)
      : k(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)),
        v(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)) {}

  void load(const Problem& problem, const Sequence& sequence, std::int64_t head, std::int64_t block) {
    begin = block * problem.plan.config.block_size;
    count = keys_in_block(problem.plan, sequence, block);
    k.load_keys({problem.k(sequence, head), begin, count});
    v.load_keys({problem.v(sequence, head), begin, count});
  }

  ScoreProduct k, v;
  std::int64_t begin = 0, count = 0;
};

/// Probabilities and score gradients of one kv_block against up to kMaxColumns query rows.
struct ScoreTile {
  ScoreTile(Arena& arena, const Plan& plan)
      : q(arena, plan.config.head_dim, kMaxColumns, multiplies_in_pairs(plan)),
        d_o(arena, plan.config.head_dim, kMaxColumns, multiplies_in_pairs(plan)),
        p(arena.take<float>(plan.config.block_size * kMaxColumns)),
        ds(arena.take<float>(plan.config.block_size * kMaxColumns)),
        limit(arena.take<float>(kMaxColumns)),
        lse(arena.take<float>(kMaxColumns)),
        delta(arena.take<float>(kMaxColumns)) {}

  /// Fills q, d_o, p and ds. `delta_rows` is D, [total_q][num_heads_q].
  void compute(const Problem& problem, const Sequence& sequence, const Columns& columns, const KvBlock& keys,
               const float* delta_rows);

  ScoreQueries q, d_o;
  float *p, *ds;  // [block_size][kMaxColumns]
  float *limit, *lse, *delta;
  bool is_partial = false;
};

void ScoreTile::compute(const Problem& problem, const Sequence& sequence, const Columns& columns, const KvBlock& keys,
                        const float* delta_rows) {
  const TileOps& ops = tile_ops();
  const std::int64_t n = columns.padded(), heads_q = problem.plan.config.num_heads_q;
  q.load(problem.tensors.q, sequence, columns, static_cast<float>(problem.plan.softmax_scale));
  d_o.load(problem.tensors.d_o, sequence, columns, 1);
  is_partial = causal_limits(sequence, columns, keys.begin, keys.count, limit);
  for (std::int64_t c = 0; c < n; ++c) {
    const bool is_padding = c >= columns.size();
    const std::int64_t row = is_padding ? 0 : sequence.q_begin + columns.queries[c / columns.heads];
    const std::int64_t head = columns.head + c % columns.heads;
    lse[c] = is_padding ? 0 : element<float>(problem.tensors.lse, row, head);
    delta[c] = is_padding ? 0 : delta_rows[row * heads_q + head];
  }
  keys.k.scores(q, p, kMaxColumns);
  ops.probabilities(p, kMaxColumns, keys.count, n, limit, lse);
  keys.v.scores(d_o, ds, kMaxColumns);
  ops.d_scores(p, ds, kMaxColumns, keys.count, n, delta);
}

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : width(pad_lanes(plan.config.head_dim)),
        visits(arena, plan, queries_per_tile(plan)),
        keys(arena, plan),
        tile(arena, plan),
        over_keys(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)),
        over_queries(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)),
        d_q(arena.take<float>(queries_per_tile(plan) * plan.group_size * width)),
        d_k(arena.take<float>(plan.config.block_size * width)),
        d_v(arena.take<float>(plan.config.block_size * width)),
        product(arena.take<float>(kMaxColumns * width)) {}

  std::int64_t width;
  TileVisits visits;
  KvBlock keys;
  ScoreTile tile;
  ValueProduct over_keys;     // sum_j ds k
  QueryProduct over_queries;  // sum_i ds q, sum_i p d_o
  float* d_q;                 // [query rows of a tile][width]
  float *d_k, *d_v;           // [block_size][width]
  float* product;             // [kMaxColumns][width]
};

struct Workspace {
  Workspace(Arena& arena, const Plan& plan)
      : threads(arena, plan),
        visitors(arena, plan),
        delta(arena.take<float>(plan.config.max_total_q * plan.config.num_heads_q)) {}
  PerThread<Scratch> threads;
  Visitors visitors;
  float* delta;  // D [total_q][num_heads_q]
};

/// D[i,h] = d_o[i,h] . o[i,h] - d_lse[i,h] for one query.
void write_delta(const Problem& problem, std::int64_t row, float* delta) {
  constexpr std::int64_t kMaxDim = 256;
  const openmsa_tensors& tensors = problem.tensors;
  const TileOps& ops = tile_ops();
  float o[kMaxDim], d_o[kMaxDim];
  for (std::int64_t h = 0; h < problem.plan.config.num_heads_q; ++h) {
    ops.widen(tensors.o.dtype, address(tensors.o, row, h), o, problem.plan.config.head_dim, 1);
    ops.widen(tensors.d_o.dtype, address(tensors.d_o, row, h), d_o, problem.plan.config.head_dim, 1);
    float sum = 0;
    for (std::int64_t c = 0; c < problem.plan.config.head_dim; ++c) sum += o[c] * d_o[c];
    if (core::present(tensors.d_lse)) sum -= element<float>(tensors.d_lse, row, h);
    delta[row * problem.plan.config.num_heads_q + h] = sum;
  }
}

/// Pass 1: d_q of one tile of queries.
void query_gradients(const Problem& problem, const HeadTile& tile, const float* delta, Scratch& s) {
  const Plan& plan = problem.plan;
  const Sequence& sequence = tile.sequence;
  const std::int64_t head = tile.head, first = tile.first, count = tile.count;
  const std::int64_t group = plan.group_size;
  begin_visits(s.visits, problem, tile);
  std::fill_n(s.d_q, count * group * s.width, 0.0f);
  Visit visit;
  while (s.visits.next(visit)) {
    s.keys.load(problem, sequence, head, visit.block);
    s.over_keys.load({problem.k(sequence, head), s.keys.begin, s.keys.count});
    for_each_chunk(visit.queries, visit.count, head * group, group, [&](const Columns& columns) {
      s.tile.compute(problem, sequence, columns, s.keys, delta);
      s.over_keys.multiply(s.tile.ds, columns.size(), s.tile.limit, s.tile.is_partial, s.product, false);
      add_rows(s.product, s.width, columns, first, s.d_q);
    });
  }
  store_rows(s.d_q, s.width, static_cast<float>(plan.softmax_scale), sequence, first, count, head, group,
             problem.tensors.d_q);
}

/// Pass 2: d_k and d_v of one kv_block of one KV head.
void key_gradients(const Problem& problem, const HeadBlock& at, const Workspace& workspace, Scratch& s) {
  const Plan& plan = problem.plan;
  const Sequence& sequence = at.sequence;
  const std::int64_t head = at.head;
  const Visit visit = workspace.visitors.of(problem, at);
  s.keys.load(problem, sequence, head, at.block);
  std::fill_n(s.d_k, s.keys.count * s.width, 0.0f);
  std::fill_n(s.d_v, s.keys.count * s.width, 0.0f);
  for_each_chunk(visit.queries, visit.count, head * plan.group_size, plan.group_size, [&](const Columns& columns) {
    const ScoreTile& tile = s.tile;
    s.tile.compute(problem, sequence, columns, s.keys, workspace.delta);
    s.over_queries.add(tile.d_o, tile.p, s.keys.count, columns.size(), tile.limit, tile.is_partial, s.d_v);
    s.over_queries.add(tile.q, tile.ds, s.keys.count, columns.size(), tile.limit, tile.is_partial, s.d_k);
  });
  const openmsa_tensor &d_k = problem.tensors.d_k, &d_v = problem.tensors.d_v;
  for (std::int64_t j = 0; j < s.keys.count; ++j) {
    const std::int64_t row = sequence.k_begin + s.keys.begin + j;
    store_row(s.d_k + j * s.width, s.tile.q.scale(), plan.config.head_dim, d_k.dtype, address(d_k, row, head));
    store_row(s.d_v + j * s.width, 1, plan.config.head_dim, d_v.dtype, address(d_v, row, head));
  }
}

}  // namespace

void plan_attention_backward(const Plan& plan, Arena& arena) { Workspace(arena, plan); }

void attention_backward(const Problem& problem, Arena& arena, const Loops& loops) {
  Workspace workspace(arena, problem.plan);
  workspace.visitors.build(problem, loops);
  loops.threads.for_each(problem.used_q(), [&](std::int64_t row, int) { write_delta(problem, row, workspace.delta); });
  for_each_query_tile(problem, loops, [&](const HeadTile& tile, int slot) {
    Scratch s = workspace.threads[slot];
    query_gradients(problem, tile, workspace.delta, s);
  });
  for_each_key_block(problem, loops, [&](const HeadBlock& at, int slot) {
    Scratch s = workspace.threads[slot];
    key_gradients(problem, at, workspace, s);
  });
  write_query_padding(problem, problem.tensors.d_q, 0, 0);
  write_key_padding(problem, problem.tensors.d_k);
  write_key_padding(problem, problem.tensors.d_v);
}

}  // namespace openmsa::cpu
