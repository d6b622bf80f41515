// Dense attention of prompts. One work item is a tile of queries of one KV head, in chunks of columns whose queries and
// running sums stay in the L2 cache; each kv_block that they see is loaded once and meets one chunk after the other,
// while the next kv_block is fetched. The arithmetic is that of attention.cc, with its bits.

#include <algorithm>
#include <numeric>

#include "cpu/products.h"
#include "cpu/running_softmax.h"
#include "cpu/stages.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

/// Queries whose rows are worked on together, and the most such chunks in a tile.
std::int64_t max_chunk(const Plan& plan) { return std::max<std::int64_t>(kMaxColumns / plan.group_size, 1); }
std::int64_t max_chunks(const Plan& plan) { return core::ceil_div(dense_queries_per_tile(plan), max_chunk(plan)); }

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : state(arena, max_chunks(plan) * kMaxColumns, pad_lanes(plan.config.head_dim)),
        queries(arena.take<ScoreQueries>(max_chunks(plan))),
        members(arena.take<std::int32_t>(dense_queries_per_tile(plan))),
        qk(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)),
        values(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)),
        ahead(arena, plan.config.block_size),
        speed(product_speed(multiplies_in_pairs(plan))),
        scores(arena.take<float>(plan.config.block_size * kMaxColumns)),
        pv(arena.take<float>(kMaxColumns * pad_lanes(plan.config.head_dim))),
        limit(arena.take<float>(kMaxColumns)),
        alpha(arena.take<float>(kMaxColumns)) {
    for (std::int64_t i = 0; i < max_chunks(plan); ++i) {
      const ScoreQueries one(arena, plan.config.head_dim, kMaxColumns, multiplies_in_pairs(plan));
      if (queries != nullptr) queries[i] = one;
    }
  }

  RunningSoftmax state;   // rows [chunk][kMaxColumns]
  ScoreQueries* queries;  // [chunks]
  std::int32_t* members;  // of the tile
  ScoreProduct qk;
  ValueProduct values;
  FetchList ahead;
  std::int64_t speed;
  float* scores;  // [block_size][kMaxColumns]
  float* pv;      // [kMaxColumns][pad_lanes(head_dim)]
  float *limit, *alpha;
};

class Tile {
 public:
  Tile(const Problem& problem, const HeadTile& tile, Scratch& scratch)
      : problem_(problem),
        tile_(tile),
        k_(problem.k(tile.sequence, tile.head)),
        v_(problem.v(tile.sequence, tile.head)),
        chunk_(chunk_size(tile.count, problem.plan.group_size)),
        chunks_(core::ceil_div(tile.count, chunk_)),
        s_(scratch) {}

  void run() {
    const Plan& plan = problem_.plan;
    std::iota(s_.members, s_.members + tile_.count, static_cast<std::int32_t>(tile_.first));
    s_.state.reset(chunks_ * kMaxColumns);
    for (std::int64_t i = 0; i < chunks_; ++i) {
      s_.queries[i].load(problem_.tensors.q, tile_.sequence, columns(i), static_cast<float>(plan.softmax_scale));
    }
    const std::int64_t end = visible_blocks(plan, tile_.sequence.position(tile_.first + tile_.count - 1));
    for (std::int64_t block = 0; block < end; ++block) {
      s_.qk.load_keys(span(k_, block));
      s_.values.load(span(v_, block));
      fetch(block + 1, end);
      for (std::int64_t i = first_to_see(block); i < chunks_; ++i) attend(i, block);
    }
    store();
  }

 private:
  Columns columns(std::int64_t chunk) const {
    const std::int64_t first = chunk * chunk_, group = problem_.plan.group_size;
    return {s_.members + first, std::min(chunk_, tile_.count - first), tile_.head * group, group};
  }
  KeySpan span(const core::KeyRows& rows, std::int64_t block) const {
    return {rows, block * problem_.plan.config.block_size, keys_in_block(problem_.plan, tile_.sequence, block)};
  }

  /// The first chunk of which some query sees the kv_block.
  std::int64_t first_to_see(std::int64_t block) const {
    const std::int64_t past = block * problem_.plan.config.block_size - tile_.sequence.position(tile_.first);
    return std::max<std::int64_t>(past, 0) / chunk_;
  }

  void fetch(std::int64_t block, std::int64_t end) {
    const std::int64_t bytes = static_cast<std::int64_t>(openmsa_dtype_bytes(problem_.plan.config.kv_dtype));
    s_.ahead.begin(problem_.plan.config.head_dim * bytes);
    if (block == end) return;
    s_.ahead.add(span(k_, block));
    s_.ahead.add(span(v_, block));
  }

  /// Brings the state of a chunk up to date with the keys and values loaded. Fetches its share of the next ones.
  void attend(std::int64_t chunk, std::int64_t block) {
    const TileOps& ops = tile_ops();
    const Columns columns = this->columns(chunk);
    const RunningSoftmax state = s_.state.from(chunk * kMaxColumns);
    const std::int64_t begin = block * problem_.plan.config.block_size, size = columns.size();
    const std::int64_t keys = keys_in_block(problem_.plan, tile_.sequence, block);
    const bool is_partial = causal_limits(tile_.sequence, columns, begin, keys, s_.limit);
    const StepTimes times = step_times(problem_.plan, size, false, s_.speed);
    const std::int64_t later = (chunks_ - 1 - chunk) * (times.scores + times.softmax + times.values);
    s_.qk.scores(s_.queries[chunk], s_.scores, kMaxColumns,
                 s_.ahead.take(times.scores, times.softmax + times.values + later));
    ops.softmax_columns(s_.scores, kMaxColumns, keys, columns.padded(), s_.limit, state.max, state.sum, s_.alpha,
                        s_.ahead.take(times.softmax, times.values + later));
    s_.values.multiply(s_.scores, size, s_.limit, is_partial, s_.pv, false, s_.ahead.take(times.values, later));
    for (std::int64_t c = 0; c < size; ++c) {
      ops.scale_add(state.o + c * state.ld, s_.pv + c * state.ld, s_.alpha[c], state.ld);
    }
  }

  void store() const {
    for (std::int64_t i = 0; i < chunks_; ++i) {
      const Columns columns = this->columns(i);
      for (std::int64_t c = 0; c < columns.size(); ++c) {
        write_row(problem_, tile_.sequence.q_begin + columns.queries[c / columns.heads],
                  columns.head + c % columns.heads, s_.state.from(i * kMaxColumns + c));
      }
    }
  }

  const Problem& problem_;
  const HeadTile& tile_;
  const core::KeyRows k_, v_;
  std::int64_t chunk_;  // queries
  std::int64_t chunks_;
  Scratch& s_;
};

}  // namespace

void dense_prefill(const Problem& problem, Arena& arena, const Loops& loops) {
  const PerThread<Scratch> workspace(arena, problem.plan);
  const std::int64_t size = dense_queries_per_tile(problem.plan), heads = problem.plan.config.num_heads_kv;
  for_each_item(
      problem, loops,
      [&](const Sequence& sequence) {
        return is_decode(sequence) ? 0 : core::ceil_div(sequence.seqlen_q, size) * heads;
      },
      [&](const Item& item, int slot) {
        Scratch s = workspace[slot];
        const std::int64_t first = item.index / heads * size;
        const HeadTile tile = {item.sequence, item.index % heads, first,
                               std::min(size, item.sequence.seqlen_q - first)};
        Tile(problem, tile, s).run();
      });
}

void plan_dense_prefill(const Plan& plan, Arena& arena) { PerThread<Scratch>(arena, plan); }

}  // namespace openmsa::cpu
