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
// it is in. Dense decode splits the keys into segments; their (o, m, l) are merged in a second step.

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

  std::int64_t ld;
  float* o;
  float* max;
  float* sum;
};

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : state(arena, queries_per_tile(plan) * plan.group_size, pad_lanes(plan.config.head_dim)),
        visits(arena, plan),
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

/// Brings the rows of `columns` up to date with the keys and values loaded.
void attend(const Problem& problem, const Sequence& sequence, const Columns& columns, std::int64_t first_query,
            KeyRange keys, Scratch& s) {
  const TileOps& ops = tile_ops();
  s.qk.load_queries(problem.tensors.q, sequence, columns, static_cast<float>(problem.plan.softmax_scale));
  const bool is_partial = causal_limits(sequence, columns, keys.begin, keys.count, s.limit);
  const std::int64_t n = columns.padded();
  const auto row = [&](std::int64_t column) {  // of the tile's state
    return columns.row(column, first_query);
  };

  s.qk.scores(s.scores, kMaxColumns);
  for (std::int64_t c = 0; c < n; ++c) {
    s.max[c] = c < columns.size() ? s.state.max[row(c)] : -kInfinity;
    s.sum[c] = c < columns.size() ? s.state.sum[row(c)] : 0;
  }
  ops.softmax_columns(s.scores, kMaxColumns, keys.count, n, s.limit, s.max, s.sum, s.alpha);
  s.values.multiply(s.scores, columns.size(), s.limit, is_partial, s.pv);
  for (std::int64_t c = 0; c < columns.size(); ++c) {
    ops.scale_add(s.state.o + row(c) * s.state.ld, s.pv + c * s.state.ld, s.alpha[c], s.state.ld);
    s.state.max[row(c)] = s.max[c];
    s.state.sum[row(c)] = s.sum[c];
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

/// The keys of a kv_block; -1: none.
KeyRange keys_of_block(const Plan& plan, const Sequence& sequence, std::int64_t block) {
  if (block < 0) return {};
  return {block * plan.config.block_size, keys_in_block(plan, sequence, block)};
}

/// One tile: all queries [first, first + count) of KV head `head` over one segment (sparse: over all they chose).
void attend_tile(const Problem& problem, const Item& item, std::int64_t head, std::int64_t first, std::int64_t count,
                 std::int64_t segment_index, Scratch& s) {
  const Plan& plan = problem.plan;
  const Sequence& sequence = item.sequence;
  if (core::present(problem.tensors.topk_indices)) {
    s.visits.begin_sparse(problem, sequence, head, first, count);
  } else {
    s.visits.begin_dense(plan, sequence, first, count, segment(plan, sequence, segment_index));
  }
  const core::KeyRows k = problem.k(sequence, head), v = problem.v(sequence, head);
  s.state.reset(count * plan.group_size);
  Visit visit;
  while (s.visits.next(visit)) {
    const KeyRange now = keys_of_block(plan, sequence, visit.block);
    const KeyRange next = keys_of_block(plan, sequence, s.visits.next_block());
    s.qk.load_keys(k, now, next);
    s.values.load(v, now, next);
    for_each_chunk(visit.queries, visit.count, head * plan.group_size, plan.group_size,
                   [&](const Columns& columns) { attend(problem, sequence, columns, first, now, s); });
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
  const Plan& plan = problem.plan;
  const Workspace workspace(arena, plan);
  const bool is_dense = !core::present(problem.tensors.topk_indices);
  const std::int64_t tile = queries_per_tile(plan), heads = plan.config.num_heads_kv, group = plan.group_size;
  const auto segments_of = [&](const Sequence& sequence) { return is_dense ? num_segments(plan, sequence) : 1; };

  for_each_item(
      problem, threads,
      [&](const Sequence& sequence) { return core::ceil_div(sequence.seqlen_q, tile) * heads * segments_of(sequence); },
      [&](const Item& item, int slot) {
        Scratch s = workspace.threads[slot];
        const std::int64_t segments = segments_of(item.sequence);
        const std::int64_t index = item.index % segments, head = item.index / segments % heads;
        const std::int64_t first = item.index / (segments * heads) * tile;
        const std::int64_t count = std::min(tile, item.sequence.seqlen_q - first);
        attend_tile(problem, item, head, first, count, index, s);
        for (std::int64_t row = 0; row < count * group; ++row) {
          const std::int64_t t = first + row / group, h = head * group + row % group;
          const float* o = s.state.o + row * s.state.ld;
          if (segments == 1) {
            write_row(problem, item.sequence.q_begin + t, h, o, s.state.max[row], s.state.sum[row]);
          } else {
            const State& state = workspace.partials.state;
            const std::int64_t to = workspace.partials.row(plan, item, t, h, index);
            std::copy(o, o + s.state.ld, state.o + to * state.ld);
            state.max[to] = s.state.max[row];
            state.sum[to] = s.state.sum[row];
          }
        }
      });
  if (is_dense) {
    for_each_item(
        problem, threads,
        [&](const Sequence& sequence) {
          return segments_of(sequence) == 1 ? 0 : sequence.seqlen_q * plan.config.num_heads_q;
        },
        [&](const Item& item, int) {
          merge_row(problem, item, item.index / plan.config.num_heads_q, item.index % plan.config.num_heads_q,
                    workspace.partials);
        });
  }
  write_query_padding(problem, problem.tensors.o, 0, 0);
  write_query_padding(problem, problem.tensors.lse, 0, -kInfinity);
}

void plan_attention(const Plan& plan, Arena& arena) { Workspace(arena, plan); }

}  // namespace openmsa::cpu
