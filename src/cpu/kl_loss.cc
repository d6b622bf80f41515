// KL loss of the index branch and the gradients of index_q and index_k, over the selection or the whole history:
//
//   P = mean over heads of exp(softmax_scale q.k - lse),   P_idx = exp(s_idx - lse_idx),   g = w[i] (P_idx - P)
//   0. per tile of queries:  lse_idx = log sum_j exp(s_idx)
//   1. per tile of queries:  KL = sum_j P (log P - log P_idx),  d_index_q = 1/sqrt(index_dim) sum_j g index_k
//   2. per kv_block:         d_index_k = 1/sqrt(index_dim) sum_{i,r} g index_q
//
// No teacher and no index score outlives its tile.

#include <algorithm>
#include <cmath>

#include "cpu/kl_tile.h"
#include "cpu/stages.h"
#include "cpu/visits.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

using core::address;

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : width(pad_lanes(plan.config.index_dim)),
        visits(arena, plan, queries_per_tile(plan)),
        keys(arena, plan),
        tile(arena, plan),
        over_keys(arena, plan.config.block_size, plan.config.index_dim, multiplies_index_in_pairs(plan)),
        over_queries(arena, plan.config.block_size, plan.config.index_dim, multiplies_index_in_pairs(plan)),
        max(arena.take<float>(pad_lanes(queries_per_tile(plan)))),
        sum(arena.take<float>(pad_lanes(queries_per_tile(plan)))),
        chunk(arena.take<float>(3 * kMaxColumns)),
        d_index_q(arena.take<float>(queries_per_tile(plan) * width)),
        d_index_k(arena.take<float>(plan.config.block_size * width)),
        product(arena.take<float>(kMaxColumns * width)) {}

  std::int64_t width;
  TileVisits visits;
  KlKeys keys;
  KlTile tile;
  ValueProduct over_keys;     // sum_j g index_k
  QueryProduct over_queries;  // sum_i g index_q
  float *max, *sum;           // running softmax of the index scores of a tile of queries
  float* chunk;               // three rows of column values
  float* d_index_q;           // [queries of a tile][width]
  float* d_index_k;           // [block_size][width]
  float* product;             // [kMaxColumns][width]
};

struct Workspace {
  Workspace(Arena& arena, const Plan& plan)
      : threads(arena, plan),
        visitors(arena, plan),
        index_lse(arena.take<float>(plan.config.num_heads_kv * plan.config.max_total_q)),
        kl(arena.take<float>(plan.config.num_heads_kv * plan.config.max_total_q)) {}

  PerThread<Scratch> threads;
  Visitors visitors;
  float* index_lse;  // [num_heads_kv][total_q]
  float* kl;         // [num_heads_kv][total_q]
};

/// Step 0 for one tile of queries.
void write_index_lse(const Problem& problem, const HeadTile& queries, const Workspace& workspace, Scratch& s) {
  const TileOps& ops = tile_ops();
  const Sequence& sequence = queries.sequence;
  const std::int64_t head = queries.head, first = queries.first, count = queries.count;
  const auto scale = static_cast<float>(problem.plan.index_scale);
  float *max = s.chunk, *sum = s.chunk + kMaxColumns, *alpha = s.chunk + 2 * kMaxColumns;
  std::fill_n(s.max, count, -kInfinity);
  std::fill_n(s.sum, count, 0.0f);
  begin_visits(s.visits, problem, queries);
  Visit visit;
  while (s.visits.next(visit)) {
    s.keys.load(problem, sequence, head, visit.block);
    for_each_chunk(visit.queries, visit.count, head, 1, [&](const Columns& columns) {
      KlTile& tile = s.tile;
      const std::int64_t n = columns.padded();
      tile.index_q.load(problem.tensors.index_q, sequence, columns, scale);
      causal_limits(sequence, columns, s.keys.begin, s.keys.count, tile.index_limit);
      for (std::int64_t c = 0; c < n; ++c) {
        max[c] = c < columns.count ? s.max[columns.queries[c] - first] : -kInfinity;
        sum[c] = c < columns.count ? s.sum[columns.queries[c] - first] : 0;
      }
      s.keys.index_k.scores(tile.index_q, tile.scores, kMaxColumns);
      ops.softmax_columns(tile.scores, kMaxColumns, s.keys.count, n, tile.index_limit, max, sum, alpha, {});
      for (std::int64_t c = 0; c < columns.count; ++c) {
        s.max[columns.queries[c] - first] = max[c];
        s.sum[columns.queries[c] - first] = sum[c];
      }
    });
  }
  float* const index_lse = workspace.index_lse + head * problem.total_q + sequence.q_begin + first;
  for (std::int64_t i = 0; i < count; ++i) {
    index_lse[i] = s.sum[i] == 0 ? -kInfinity : s.max[i] + std::log(s.sum[i]);
  }
}

/// Step 1: loss and d_index_q of one tile of queries.
void query_gradients(const Problem& problem, const HeadTile& queries, const Workspace& workspace, Scratch& s) {
  const Plan& plan = problem.plan;
  const TileOps& ops = tile_ops();
  const Sequence& sequence = queries.sequence;
  const std::int64_t head = queries.head, first = queries.first, count = queries.count;
  float* const kl = workspace.kl + head * problem.total_q + sequence.q_begin;
  std::fill_n(s.d_index_q, count * s.width, 0.0f);
  std::fill_n(kl + first, count, 0.0f);
  begin_visits(s.visits, problem, queries);
  Visit visit;
  while (s.visits.next(visit)) {
    s.keys.load(problem, sequence, head, visit.block);
    s.over_keys.load({problem.index_k(sequence), s.keys.begin, s.keys.count});
    for_each_kl_chunk(problem, sequence, visit, head, [&](const Columns& heads) {
      KlTile& tile = s.tile;
      tile.compute(problem, sequence, heads, head, s.keys, workspace.index_lse + head * problem.total_q);
      const std::int64_t n = tile.index_columns.padded();
      std::fill_n(s.chunk, n, 0.0f);
      ops.kl_columns(tile.teacher, tile.scores, kMaxColumns, s.keys.count, n, tile.index_limit, tile.index_lse,
                     tile.weight, s.chunk);
      s.over_keys.multiply(tile.scores, heads.count, tile.index_limit, tile.is_partial, s.product, false);
      for (std::int64_t c = 0; c < heads.count; ++c) {
        kl[heads.queries[c]] += s.chunk[c];
      }
      add_rows(s.product, s.width, tile.index_columns, first, s.d_index_q);
    });
  }
  if (!core::present(problem.tensors.d_index_q)) return;
  store_rows(s.d_index_q, s.width, static_cast<float>(plan.index_scale), sequence, first, count, head, 1,
             problem.tensors.d_index_q);
}

/// Step 2: d_index_k of one kv_block, summed over all KV heads.
void key_gradients(const Problem& problem, const Item& item, const Workspace& workspace, Scratch& s) {
  const Plan& plan = problem.plan;
  const TileOps& ops = tile_ops();
  const Sequence& sequence = item.sequence;
  s.keys.count = keys_in_block(plan, sequence, item.index);
  std::fill_n(s.d_index_k, s.keys.count * s.width, 0.0f);
  for (std::int64_t head = 0; head < plan.config.num_heads_kv; ++head) {
    const Visit visit = workspace.visitors.of(problem, {sequence, item.b, head, item.index});
    s.keys.load(problem, sequence, head, item.index);
    for_each_kl_chunk(problem, sequence, visit, head, [&](const Columns& heads) {
      KlTile& tile = s.tile;
      tile.compute(problem, sequence, heads, head, s.keys, workspace.index_lse + head * problem.total_q);
      ops.kl_columns(tile.teacher, tile.scores, kMaxColumns, s.keys.count, tile.index_columns.padded(),
                     tile.index_limit, tile.index_lse, tile.weight, s.chunk);
      s.over_queries.add(tile.index_q, tile.scores, s.keys.count, heads.count, tile.index_limit, tile.is_partial,
                         s.d_index_k);
    });
  }
  const openmsa_tensor& d_index_k = problem.tensors.d_index_k;
  for (std::int64_t j = 0; j < s.keys.count; ++j) {
    store_row(s.d_index_k + j * s.width, s.tile.index_q.scale(), plan.config.index_dim, d_index_k.dtype,
              address(d_index_k, sequence.k_begin + s.keys.begin + j));
  }
}

/// sum_{i,r} w[i] KL in a fixed order, in float64.
void write_loss(const Problem& problem, const float* kl) {
  const std::int64_t used_q = problem.used_q();
  double sum = 0;
  for (std::int64_t head = 0; head < problem.plan.config.num_heads_kv; ++head) {
    for (std::int64_t row = 0; row < used_q; ++row) sum += problem.kl_weight(row) * kl[head * problem.total_q + row];
  }
  core::store(problem.tensors.kl_loss, sum, 0);
}

}  // namespace

void plan_kl_loss(const Plan& plan, Arena& arena) {
  Workspace(arena, plan);
  plan_kl_teacher_backward(plan, arena);
}

void kl_loss(const Problem& problem, Arena& arena, const Loops& loops) {
  const Plan& plan = problem.plan;
  Workspace workspace(arena, plan);
  for_each_query_tile(problem, loops, [&](const HeadTile& queries, int slot) {
    Scratch s = workspace.threads[slot];
    write_index_lse(problem, queries, workspace, s);
  });
  const openmsa_tensors& tensors = problem.tensors;
  if (core::present(tensors.kl_loss) || core::present(tensors.d_index_q)) {
    for_each_query_tile(problem, loops, [&](const HeadTile& queries, int slot) {
      Scratch s = workspace.threads[slot];
      query_gradients(problem, queries, workspace, s);
    });
  }
  if (core::present(tensors.kl_loss)) write_loss(problem, workspace.kl);
  const bool needs_visitors = core::present(tensors.d_index_k) || core::present(tensors.d_k);
  if (needs_visitors) workspace.visitors.build(problem, loops);
  if (core::present(tensors.d_index_k)) {
    for_each_item(
        problem, loops, [&](const Sequence& sequence) { return num_blocks(plan, sequence); },
        [&](const Item& item, int slot) {
          Scratch s = workspace.threads[slot];
          key_gradients(problem, item, workspace, s);
        });
  }
  if (core::present(tensors.d_q) || core::present(tensors.d_k)) {
    kl_teacher_backward(problem, arena, loops, workspace.visitors, workspace.index_lse);
  }
  write_query_padding(problem, tensors.d_index_q, 0, 0);
  write_query_padding(problem, tensors.d_q, 0, 0);
  write_key_padding(problem, tensors.d_index_k);
  write_key_padding(problem, tensors.d_k);
}

}  // namespace openmsa::cpu
