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
// it is in. Dense decode splits the keys into segments; their (o, m, l) are merged in a second step. There one work
// item has all KV heads: a token's heads lie side by side in memory, and memory is what decode waits for.

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/products.h"
#include "cpu/stages.h"
#include "cpu/visits.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

using core::address;
using core::Arena;
using core::Plan;
using core::Problem;
using core::Sequence;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Running softmax of query rows: o [rows][ld] not yet divided by sum.
struct State {
  State(Arena& arena, std::int64_t rows, std::int64_t ld)
      : ld(ld), o(arena.take<float>(rows * ld)), max(arena.take<float>(rows)), sum(arena.take<float>(rows)) {}

  void reset(std::int64_t rows) {
    std::fill(o, o + rows * ld, 0.0f);
    std::fill(max, max + rows, -kInfinity);
    std::fill(sum, sum + rows, 0.0f);
  }

  /// The rows from `row` on.
  State from(std::int64_t row) const {
    State result = *this;
    result.o += row * ld;
    result.max += row;
    result.sum += row;
    return result;
  }

  std::int64_t ld;
  float* o;
  float* max;
  float* sum;
};

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : state(arena, max_rows(plan), pad_lanes(plan.config.head_dim)),
        visits(arena, plan, max_forward_queries(plan)),
        qk(arena, plan.config.block_size, plan.config.head_dim, kMaxColumns, in_pairs(plan)),
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

  /// Query rows of one work item.
  static std::int64_t max_rows(const Plan& plan) {
    const std::int64_t decode_queries = std::min(kMaxDecodeQueries, plan.config.max_total_q);
    return std::max(max_forward_queries(plan) * plan.group_size, decode_queries * plan.config.num_heads_q);
  }

  State state;
  TileVisits visits;
  ScoreProduct qk;
  ValueProduct values;
  float* scores;  // [block_size][kMaxColumns]
  float* pv;      // [kMaxColumns][pad_lanes(head_dim)]
  float *limit, *max, *sum, *alpha;
};

/// Merged results of the segments of decode rows: [max_decode_rows][num_heads_q][max_segments].
struct Partials {
  Partials(Arena& arena, const Plan& plan)
      : segments(max_segments(plan)),
        heads(plan.config.num_heads_q),
        state(arena, segments == 1 ? 0 : max_decode_rows(plan) * heads * segments, pad_lanes(plan.config.head_dim)) {}

  std::int64_t row(const Plan& plan, const Item& item, std::int64_t t, std::int64_t head, std::int64_t segment) const {
    return (decode_row(plan, item.b, item.sequence, t) * heads + head) * segments + segment;
  }

  std::int64_t segments;
  std::int64_t heads;
  State state;
};

/// Brings the rows of `columns` in `state`, that of their KV head from `first_query` on, up to date with the keys and
/// values loaded.
void attend(const Problem& problem, const Sequence& sequence, const Columns& columns, std::int64_t first_query,
            const KeySpan& keys, const State& state, Scratch& s) {
  const TileOps& ops = tile_ops();
  s.qk.load_queries(problem.tensors.q, sequence, columns, static_cast<float>(problem.plan.softmax_scale));
  const bool is_partial = causal_limits(sequence, columns, keys.begin, keys.count, s.limit);
  const std::int64_t n = columns.padded();
  const auto row = [&](std::int64_t column) {  // of the tile's state
    return columns.row(column, first_query);
  };

  s.qk.scores(s.scores, kMaxColumns);
  for (std::int64_t c = 0; c < n; ++c) {
    s.max[c] = c < columns.size() ? state.max[row(c)] : -kInfinity;
    s.sum[c] = c < columns.size() ? state.sum[row(c)] : 0;
  }
  ops.softmax_columns(s.scores, kMaxColumns, keys.count, n, s.limit, s.max, s.sum, s.alpha);
  s.values.multiply(s.scores, columns.size(), s.limit, is_partial, s.pv);
  for (std::int64_t c = 0; c < columns.size(); ++c) {
    ops.scale_add(state.o + row(c) * state.ld, s.pv + c * state.ld, s.alpha[c], state.ld);
    state.max[row(c)] = s.max[c];
    state.sum[row(c)] = s.sum[c];
  }
}

/// o and lse of one query row from its running softmax.
void write_row(const Problem& problem, std::int64_t row, std::int64_t head, const float* o, float max, float sum) {
  const openmsa_tensors& tensors = problem.tensors;
  const bool is_empty = sum == 0;
  store_row(o, is_empty ? 0 : 1 / sum, problem.plan.config.head_dim, tensors.o.dtype, address(tensors.o, row, head));
  if (core::present(tensors.lse))
    core::element<float>(tensors.lse, row, head) = is_empty ? -kInfinity : max + std::log(sum);
}

struct Workspace {
  Workspace(Arena& arena, const Plan& plan) : threads(arena, plan), partials(arena, plan) {}
  PerThread<Scratch> threads;
  Partials partials;
};

/// What a work item covers: queries [first, first + count) of some KV heads over one segment of the keys. Its rows
/// stand in the order [KV head][query][head of the group].
struct Tile {
  std::int64_t first, count;
  std::int64_t head, heads;
  std::int64_t segment;

  std::int64_t rows(const Plan& plan) const { return heads * count * plan.group_size; }
};

/// Whether work items have all KV heads of a sequence. Sparse ones do not, for each head chooses its own kv_blocks.
bool joins_heads(const Problem& problem, const Sequence& sequence) {
  return is_decode(sequence) && !core::present(problem.tensors.topk_indices);
}

std::int64_t queries_of_tile(const Problem& problem, const Sequence& sequence) {
  return joins_heads(problem, sequence) ? kMaxDecodeQueries : forward_queries_per_tile(problem.plan, sequence);
}

std::int64_t segments_of(const Problem& problem, const Sequence& sequence) {
  return joins_heads(problem, sequence) ? num_segments(problem.plan, sequence) : 1;
}

std::int64_t count_tiles(const Problem& problem, const Sequence& sequence) {
  const std::int64_t heads = joins_heads(problem, sequence) ? 1 : problem.plan.config.num_heads_kv;
  return core::ceil_div(sequence.seqlen_q, queries_of_tile(problem, sequence)) * heads * segments_of(problem, sequence);
}

Tile tile_of(const Problem& problem, const Item& item) {
  const std::int64_t size = queries_of_tile(problem, item.sequence), segments = segments_of(problem, item.sequence);
  const std::int64_t kv_heads = problem.plan.config.num_heads_kv;
  const std::int64_t heads = joins_heads(problem, item.sequence) ? kv_heads : 1, parts = kv_heads / heads;
  const std::int64_t first = item.index / (segments * parts) * size;
  return {first, std::min(size, item.sequence.seqlen_q - first), item.index / segments % parts, heads,
          item.index % segments};
}

/// Walks over the kv_blocks of the tile's segment (sparse: over all that its queries chose), head by head.
void attend_tile(const Problem& problem, const Sequence& sequence, const Tile& tile, Scratch& s) {
  const Plan& plan = problem.plan;
  if (core::present(problem.tensors.topk_indices)) {
    s.visits.begin_sparse(problem, sequence, tile.head, tile.first, tile.count);
  } else {
    s.visits.begin_dense(plan, sequence, tile.first, tile.count, segment(plan, sequence, tile.segment));
  }
  const auto span = [&](const core::KeyRows& rows, std::int64_t block) {
    const std::int64_t keys = block < 0 ? 0 : keys_in_block(plan, sequence, block);
    return KeySpan{rows, block * plan.config.block_size, keys};
  };
  s.state.reset(tile.rows(plan));
  Visit visit;
  while (s.visits.next(visit)) {
    for (std::int64_t i = 0; i < tile.heads; ++i) {
      const std::int64_t head = tile.head + i, next_head = tile.head + (i + 1) % tile.heads;
      const std::int64_t next_block = i + 1 < tile.heads ? visit.block : s.visits.next_block();
      const KeySpan keys = span(problem.k(sequence, head), visit.block);
      s.qk.load_keys(keys, span(problem.k(sequence, next_head), next_block));
      s.values.load(span(problem.v(sequence, head), visit.block), span(problem.v(sequence, next_head), next_block));
      const State state = s.state.from(i * tile.count * plan.group_size);
      for_each_chunk(visit.queries, visit.count, head * plan.group_size, plan.group_size,
                     [&](const Columns& columns) { attend(problem, sequence, columns, tile.first, keys, state, s); });
    }
  }
}

/// Writes the rows of a finished tile, or keeps them for merge_row.
void store_tile(const Problem& problem, const Item& item, const Tile& tile, const State& state,
                const Partials& partials) {
  const std::int64_t group = problem.plan.group_size;
  for (std::int64_t row = 0; row < tile.rows(problem.plan); ++row) {
    const std::int64_t t = tile.first + row / group % tile.count;
    const std::int64_t h = (tile.head + row / group / tile.count) * group + row % group;
    const State from = state.from(row);
    if (segments_of(problem, item.sequence) == 1) {
      write_row(problem, item.sequence.q_begin + t, h, from.o, *from.max, *from.sum);
      continue;
    }
    const State to = partials.state.from(partials.row(problem.plan, item, t, h, tile.segment));
    std::copy(from.o, from.o + from.ld, to.o);
    *to.max = *from.max;
    *to.sum = *from.sum;
  }
}

/// Merges the segments of one decode row in order and writes it.
void merge_row(const Problem& problem, const Item& item, std::int64_t t, std::int64_t head, const Partials& partials) {
  const Plan& plan = problem.plan;
  const TileOps& ops = tile_ops();
  const State& state = partials.state;
  const std::int64_t first = partials.row(plan, item, t, head, 0);
  for (std::int64_t i = 1; i < num_segments(plan, item.sequence); ++i) {
    const float max = std::max(state.max[first], state.max[first + i]);
    if (max == -kInfinity) continue;
    const float alpha = std::exp(state.max[first] - max), beta = std::exp(state.max[first + i] - max);
    float* other = state.o + (first + i) * state.ld;
    for (std::int64_t c = 0; c < state.ld; ++c) other[c] *= beta;
    ops.scale_add(state.o + first * state.ld, other, alpha, state.ld);
    state.sum[first] = state.sum[first] * alpha + state.sum[first + i] * beta;
    state.max[first] = max;
  }
  write_row(problem, item.sequence.q_begin + t, head, state.o + first * state.ld, state.max[first], state.sum[first]);
}

}  // namespace

void attention(const Problem& problem, Arena& arena, const Threads& threads) {
  const Workspace workspace(arena, problem.plan);
  for_each_item(
      problem, threads, [&](const Sequence& sequence) { return count_tiles(problem, sequence); },
      [&](const Item& item, int slot) {
        Scratch s = workspace.threads[slot];
        const Tile tile = tile_of(problem, item);
        attend_tile(problem, item.sequence, tile, s);
        store_tile(problem, item, tile, s.state, workspace.partials);
      });
  const std::int64_t heads = problem.plan.config.num_heads_q;
  for_each_item(
      problem, threads,
      [&](const Sequence& sequence) { return segments_of(problem, sequence) == 1 ? 0 : sequence.seqlen_q * heads; },
      [&](const Item& item, int) {
        merge_row(problem, item, item.index / heads, item.index % heads, workspace.partials);
      });
  write_query_padding(problem, problem.tensors.o, 0, 0);
  write_query_padding(problem, problem.tensors.lse, 0, -kInfinity);
}

void plan_attention(const Plan& plan, Arena& arena) { Workspace(arena, plan); }

}  // namespace openmsa::cpu
