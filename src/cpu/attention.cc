// Forward of the main branch, sparse and dense.
//
// One work item is a tile of queries of one KV head. It walks over the kv_blocks that its queries visit, in ascending
// order, loads each block's keys and values once, and brings all query rows that visit it up to date (online softmax):
//
//   s = k q^T                               [keys][columns]
//   m' = max(m, max_j s),  p = exp(s - m'),  alpha = exp(m - m')
//   l = alpha l + sum_j p,  o = alpha o + p^T v
//
// so the work done is exactly that of the chosen (query, block) pairs, and a query's result does not depend on the tile
// it is in. Dense attention of a few queries over many keys is in dense_decode.cc.

#include <algorithm>
#include <limits>

#include "cpu/products.h"
#include "cpu/running_softmax.h"
#include "cpu/stages.h"
#include "cpu/visits.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

using core::Arena;
using core::Plan;
using core::Problem;
using core::Sequence;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : state(arena, max_forward_queries(plan) * plan.group_size, pad_lanes(plan.config.head_dim)),
        visits(arena, plan, max_forward_queries(plan)),
        queries(arena, plan.config.head_dim, kMaxColumns, in_pairs(plan)),
        qk(arena, plan.config.block_size, plan.config.head_dim, in_pairs(plan)),
        values(arena, plan.config.block_size, plan.config.head_dim, in_pairs(plan)),
        scores(arena.take<float>(plan.config.block_size * kMaxColumns)),
        pv(arena.take<float>(kMaxColumns * pad_lanes(plan.config.head_dim))),
        limit(arena.take<float>(kMaxColumns)),
        max(arena.take<float>(kMaxColumns)),
        sum(arena.take<float>(kMaxColumns)),
        alpha(arena.take<float>(kMaxColumns)) {}

  static bool in_pairs(const Plan& plan) {
    return multiplies_in_pairs(plan, plan.config.kv_dtype, plan.config.head_dim);
  }

  RunningSoftmax state;
  TileVisits visits;
  ScoreQueries queries;
  ScoreProduct qk;
  ValueProduct values;
  float* scores;  // [block_size][kMaxColumns]
  float* pv;      // [kMaxColumns][pad_lanes(head_dim)]
  float *limit, *max, *sum, *alpha;
};

/// Brings the rows of `columns` in s.state, whose first is that of query `first_query`, up to date with the keys and
/// values loaded.
void attend(const Problem& problem, const Sequence& sequence, const Columns& columns, std::int64_t first_query,
            const KeySpan& keys, Scratch& s) {
  const TileOps& ops = tile_ops();
  const RunningSoftmax& state = s.state;
  s.queries.load(problem.tensors.q, sequence, columns, static_cast<float>(problem.plan.softmax_scale));
  const bool is_partial = causal_limits(sequence, columns, keys.begin, keys.count, s.limit);
  const std::int64_t n = columns.padded();
  const auto row = [&](std::int64_t column) {  // of the tile's state
    return columns.row(column, first_query);
  };

  s.qk.scores(s.queries, s.scores, kMaxColumns);
  for (std::int64_t c = 0; c < n; ++c) {
    s.max[c] = c < columns.size() ? state.max[row(c)] : -kInfinity;
    s.sum[c] = c < columns.size() ? state.sum[row(c)] : 0;
  }
  ops.softmax_columns(s.scores, kMaxColumns, keys.count, n, s.limit, s.max, s.sum, s.alpha);
  s.values.multiply(s.scores, columns.size(), s.limit, is_partial, s.pv, false);
  for (std::int64_t c = 0; c < columns.size(); ++c) {
    ops.scale_add(state.o + row(c) * state.ld, s.pv + c * state.ld, s.alpha[c], state.ld);
    state.max[row(c)] = s.max[c];
    state.sum[row(c)] = s.sum[c];
  }
}

/// What a work item covers: queries [first, first + count) of one KV head.
struct Tile {
  std::int64_t first, count;
  std::int64_t head;
};

/// Whether a sequence is left to dense_decode.
bool is_dense_decode(const Problem& problem, const Sequence& sequence) {
  return is_decode(sequence) && !core::present(problem.tensors.topk_indices);
}

std::int64_t count_tiles(const Problem& problem, const Sequence& sequence) {
  if (is_dense_decode(problem, sequence)) return 0;
  const std::int64_t queries = forward_queries_per_tile(problem.plan, sequence);
  return core::ceil_div(sequence.seqlen_q, queries) * problem.plan.config.num_heads_kv;
}

Tile tile_of(const Problem& problem, const Item& item) {
  const std::int64_t size = forward_queries_per_tile(problem.plan, item.sequence);
  const std::int64_t heads = problem.plan.config.num_heads_kv, first = item.index / heads * size;
  return {first, std::min(size, item.sequence.seqlen_q - first), item.index % heads};
}

/// Walks over the kv_blocks that the tile's queries see, or have chosen.
void attend_tile(const Problem& problem, const Sequence& sequence, const Tile& tile, Scratch& s) {
  const Plan& plan = problem.plan;
  const core::KeyRows k = problem.k(sequence, tile.head), v = problem.v(sequence, tile.head);
  const auto span = [&](const core::KeyRows& rows, std::int64_t block) {
    const std::int64_t keys = block < 0 ? 0 : keys_in_block(plan, sequence, block);
    return KeySpan{rows, block * plan.config.block_size, keys};
  };
  begin_visits(s.visits, problem, sequence, tile.head, tile.first, tile.count);
  s.state.reset(tile.count * plan.group_size);
  Visit visit;
  while (s.visits.next(visit)) {
    const std::int64_t next = s.visits.next_block();
    const KeySpan keys = span(k, visit.block);
    s.qk.load_keys(keys, ahead_of(span(k, next), plan.config.head_dim));
    s.values.load(span(v, visit.block), ahead_of(span(v, next), plan.config.head_dim));
    for_each_chunk(visit.queries, visit.count, tile.head * plan.group_size, plan.group_size,
                   [&](const Columns& columns) { attend(problem, sequence, columns, tile.first, keys, s); });
  }
}

void store_tile(const Problem& problem, const Sequence& sequence, const Tile& tile, const RunningSoftmax& state) {
  const std::int64_t group = problem.plan.group_size;
  for (std::int64_t row = 0; row < tile.count * group; ++row) {
    write_row(problem, sequence.q_begin + tile.first + row / group, tile.head * group + row % group, state.from(row));
  }
}

}  // namespace

void attention(const Problem& problem, Arena& arena, const Threads& threads) {
  if (!core::present(problem.tensors.topk_indices)) {
    Arena decode = arena;  // one after the other in the same scratch
    dense_decode(problem, decode, threads);
  }
  const PerThread<Scratch> workspace(arena, problem.plan);
  for_each_item(
      problem, threads, [&](const Sequence& sequence) { return count_tiles(problem, sequence); },
      [&](const Item& item, int slot) {
        Scratch s = workspace[slot];
        const Tile tile = tile_of(problem, item);
        attend_tile(problem, item.sequence, tile, s);
        store_tile(problem, item.sequence, tile, s.state);
      });
  write_query_padding(problem, problem.tensors.o, 0, 0);
  write_query_padding(problem, problem.tensors.lse, 0, -kInfinity);
}

void plan_attention(const Plan& plan, Arena& arena) {
  Arena decode = arena;
  plan_dense_decode(plan, decode);
  PerThread<Scratch>(arena, plan);
  if (decode.used() > arena.used()) arena = decode;
}

}  // namespace openmsa::cpu
