// How well a selection covers what dense attention looks at. Two walks over all visible kv_blocks of a tile of queries:
// the first gives the dense lse, the second the probability mass of each block.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/products.h"
#include "cpu/stages.h"
#include "cpu/visits.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

using core::element;

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : visits(arena, plan, queries_per_tile(plan)),
        q(arena, plan.config.head_dim, kMaxColumns, multiplies_in_pairs(plan)),
        k(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)),
        scores(arena.take<float>(plan.config.block_size * kMaxColumns)),
        chunk(arena.take<float>(4 * kMaxColumns)),
        max(arena.take<float>(queries_per_tile(plan) * plan.group_size)),
        sum(arena.take<float>(queries_per_tile(plan) * plan.group_size)),
        mass(arena.take<float>(queries_per_tile(plan) * plan.max_blocks)),
        order(arena.take<std::int32_t>(plan.max_blocks)) {}

  TileVisits visits;
  ScoreQueries q;
  ScoreProduct k;
  float* scores;        // [block_size][kMaxColumns]
  float* chunk;         // four rows of column values
  float *max, *sum;     // running softmax of the tile's query rows
  float* mass;          // [queries of a tile][max_blocks], mean over the group's heads
  std::int32_t* order;  // kv_blocks by mass
};

/// Runs body(columns, block, keys) over all visible kv_blocks with the scores of each chunk in s.scores and its limits
/// in s.chunk.
template <class Body>
void for_each_score_tile(const Problem& problem, const HeadTile& tile, Scratch& s, const Body& body) {
  const Plan& plan = problem.plan;
  s.visits.begin_dense(plan, tile);
  Visit visit;
  while (s.visits.next(visit)) {
    const std::int64_t begin = visit.block * plan.config.block_size;
    const std::int64_t keys = keys_in_block(plan, tile.sequence, visit.block);
    s.k.load_keys({problem.k(tile.sequence, tile.head), begin, keys});
    for_each_chunk(visit.queries, visit.count, tile.head * plan.group_size, plan.group_size,
                   [&](const Columns& columns) {
                     s.q.load(problem.tensors.q, tile.sequence, columns, static_cast<float>(plan.softmax_scale));
                     causal_limits(tile.sequence, columns, begin, keys, s.chunk);
                     s.k.scores(s.q, s.scores, kMaxColumns);
                     body(columns, visit.block, keys);
                   });
  }
}

/// Row of the tile's running softmax that a column stands for; -1 for padding.
std::int64_t state_row(const HeadTile& tile, const Columns& columns, std::int64_t column) {
  if (column >= columns.size()) return -1;
  return columns.row(column, tile.first);
}

void compute_softmax(const Problem& problem, const HeadTile& tile, Scratch& s) {
  float *limit = s.chunk, *max = limit + kMaxColumns, *sum = max + kMaxColumns, *alpha = sum + kMaxColumns;
  const std::int64_t rows = tile.count * problem.plan.group_size;
  std::fill_n(s.max, rows, -kInfinity);
  std::fill_n(s.sum, rows, 0.0f);
  for_each_score_tile(problem, tile, s, [&](const Columns& columns, std::int64_t, std::int64_t keys) {
    for (std::int64_t c = 0; c < columns.padded(); ++c) {
      const std::int64_t row = state_row(tile, columns, c);
      max[c] = row < 0 ? -kInfinity : s.max[row];
      sum[c] = row < 0 ? 0 : s.sum[row];
    }
    tile_ops().softmax_columns(s.scores, kMaxColumns, keys, columns.padded(), limit, max, sum, alpha, {});
    for (std::int64_t c = 0; c < columns.size(); ++c) {
      s.max[state_row(tile, columns, c)] = max[c];
      s.sum[state_row(tile, columns, c)] = sum[c];
    }
  });
}

void compute_mass(const Problem& problem, const HeadTile& tile, Scratch& s) {
  float *limit = s.chunk, *lse = limit + kMaxColumns;
  const std::int64_t blocks = problem.plan.max_blocks;
  const float share = 1.0f / static_cast<float>(problem.plan.group_size);
  std::fill_n(s.mass, tile.count * blocks, 0.0f);
  for_each_score_tile(problem, tile, s, [&](const Columns& columns, std::int64_t block, std::int64_t keys) {
    for (std::int64_t c = 0; c < columns.padded(); ++c) {
      const std::int64_t row = state_row(tile, columns, c);
      lse[c] = row < 0 ? 0 : s.max[row] + std::log(s.sum[row]);
    }
    tile_ops().probabilities(s.scores, kMaxColumns, keys, columns.padded(), limit, lse);
    for (std::int64_t c = 0; c < columns.size(); ++c) {
      float sum = 0;
      for (std::int64_t j = 0; j < keys; ++j) sum += s.scores[j * kMaxColumns + c];
      s.mass[(columns.queries[c / columns.heads] - tile.first) * blocks + block] += sum * share;
    }
  });
}

/// Compares the selection of query `first + i` with the blocks of highest mass.
void write_recall(const Problem& problem, const HeadTile& tile, std::int64_t i, Scratch& s) {
  const openmsa_tensors& tensors = problem.tensors;
  const std::int64_t row = tile.sequence.q_begin + tile.first + i;
  const std::int64_t position = tile.sequence.position(tile.first + i);
  const std::int64_t visible = position < 0 ? 0 : position / problem.plan.config.block_size + 1;
  const float* mass = s.mass + i * problem.plan.max_blocks;

  // n = `chosen` counts the kv_blocks of the selection that the query sees. The first n of the order are those of
  // highest mass; equal masses: the lower block first.
  const auto block_at = [&](std::int64_t slot) {
    return std::int64_t{element<std::int32_t>(tensors.topk_indices, tile.head, row, slot)};
  };
  std::int64_t chosen = 0, slots = 0;
  for (; slots < problem.plan.config.topk && block_at(slots) >= 0; ++slots) chosen += block_at(slots) < visible ? 1 : 0;
  const auto heavier = [&](std::int32_t a, std::int32_t b) {
    return mass[a] > mass[b] || (mass[a] == mass[b] && a < b);
  };
  std::iota(s.order, s.order + visible, 0);
  std::partial_sort(s.order, s.order + chosen, s.order + visible, heavier);

  float covered = 0;
  std::int64_t hits = 0;
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    const std::int64_t block = block_at(slot);
    if (block >= visible) continue;
    covered += mass[block];
    hits += std::find(s.order, s.order + chosen, block) != s.order + chosen;
  }
  const bool is_empty = visible == 0;
  if (core::present(tensors.block_recall)) {
    const float recall = chosen == 0 ? 0 : static_cast<float>(hits) / static_cast<float>(chosen);
    element<float>(tensors.block_recall, tile.head, row) = is_empty ? 1 : recall;
  }
  if (core::present(tensors.score_recall))
    element<float>(tensors.score_recall, tile.head, row) = is_empty ? 1 : covered;
}

using Workspace = PerThread<Scratch>;

}  // namespace

void plan_block_recall(const Plan& plan, Arena& arena) { Workspace(arena, plan); }

void block_recall(const Problem& problem, Arena& arena, const Loops& loops) {
  const Workspace workspace(arena, problem.plan);
  for_each_query_tile(problem, loops, [&](const HeadTile& tile, int slot) {
    Scratch s = workspace[slot];
    compute_softmax(problem, tile, s);
    compute_mass(problem, tile, s);
    for (std::int64_t i = 0; i < tile.count; ++i) write_recall(problem, tile, i, s);
  });
  write_query_padding(problem, problem.tensors.block_recall, 1, 1);
  write_query_padding(problem, problem.tensors.score_recall, 1, 1);
}

}  // namespace openmsa::cpu
