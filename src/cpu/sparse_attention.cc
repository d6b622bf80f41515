// Forward of the main branch.
//
// One work item is a tile of queries of one KV head. It walks over the kv_blocks that its queries visit, in ascending
// order, loads each block's keys and values once, and brings all query rows that visit it up to date (online softmax):
//
//   s = k q^T                               [keys][columns]
//   m' = max(m, max_j s),  p = exp(s - m'),  alpha = exp(m - m')
//   l = alpha l + sum_j p,  o = alpha o + p^T v
//
// so the work done is exactly that of the chosen (query, block) pairs, and a query's result does not depend on the tile
// it is in.

#include <algorithm>

#include "cpu/attention_step.h"
#include "cpu/running_softmax.h"
#include "cpu/stages.h"
#include "cpu/visits.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

using core::KeyRows;

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : state(arena, max_forward_queries(plan) * plan.group_size, pad_lanes(plan.config.head_dim)),
        visits(arena, plan, max_forward_queries(plan)),
        queries(arena, plan.config.head_dim, kMaxColumns, multiplies_in_pairs(plan)),
        step(arena, plan),
        max(arena.take<float>(kMaxColumns)),
        sum(arena.take<float>(kMaxColumns)) {}

  RunningSoftmax state;
  TileVisits visits;
  ScoreQueries queries;
  AttentionStep step;
  float *max, *sum;  // of a step's columns
};

std::int64_t count_tiles(const Problem& problem, const Sequence& sequence) {
  const std::int64_t queries = forward_queries_per_tile(problem.plan, sequence);
  return core::ceil_div(sequence.seqlen_q, queries) * problem.plan.config.num_heads_kv;
}

HeadTile tile_of(const Problem& problem, const Item& item) {
  const std::int64_t size = forward_queries_per_tile(problem.plan, item.sequence);
  const std::int64_t heads = problem.plan.config.num_heads_kv, first = item.index / heads * size;
  return {item.sequence, item.index % heads, first, std::min(size, item.sequence.seqlen_q - first)};
}

/// Query rows that are worked on together with a kv_block.
struct Step {
  std::int64_t block;
  Columns columns;
  bool is_first;  // of the kv_block
};

/// The steps of a tile's visits, in order.
class Steps {
 public:
  Steps(TileVisits& visits, std::int64_t head, std::int64_t heads) : visits_(visits), head_(head), heads_(heads) {}

  bool next(Step& step) {
    const bool is_first = begin_ == visit_.count;
    if (is_first) {
      if (!visits_.next(visit_)) return false;
      begin_ = 0;
      size_ = chunk_size(visit_.count, heads_);
    }
    step = {visit_.block, {visit_.queries + begin_, std::min(size_, visit_.count - begin_), head_, heads_}, is_first};
    begin_ += step.columns.count;
    return true;
  }

 private:
  TileVisits& visits_;
  std::int64_t head_, heads_;
  Visit visit_{};
  std::int64_t begin_ = 0, size_ = 0;
};

class TileWalk {
 public:
  TileWalk(const Problem& problem, const HeadTile& tile, Scratch& scratch)
      : problem_(problem),
        sequence_(tile.sequence),
        tile_(tile),
        k_(problem.k(tile.sequence, tile.head)),
        v_(problem.v(tile.sequence, tile.head)),
        s_(scratch) {}

  /// Over the kv_blocks that the tile's queries have chosen.
  void run() {
    const std::int64_t group = problem_.plan.group_size;
    s_.visits.begin_sparse(problem_, tile_);
    s_.state.reset(tile_.count * group);
    Steps steps(s_.visits, tile_.head * group, group);
    Step now, next;
    for (bool is_left = steps.next(now); is_left; now = next) {
      is_left = steps.next(next);
      if (now.is_first) s_.step.load(span(k_, now.block), span(v_, now.block));
      if (is_left && fetches_ahead(s_.step.speed)) fetch(next);
      attend(now);
    }
  }

 private:
  KeySpan span(const KeyRows& rows, std::int64_t block) const {
    return block_span(problem_.plan, sequence_, rows, block);
  }
  /// The running softmax of a query's heads, in rows of their own.
  RunningSoftmax state_of(std::int32_t query) const {
    return s_.state.from((query - tile_.first) * problem_.plan.group_size);
  }

  /// Lists the memory that `step` will read, to be fetched during the step before it.
  void fetch(const Step& step) {
    const std::int64_t heads = step.columns.heads, dim = problem_.plan.config.head_dim;
    const openmsa_tensor& q = problem_.tensors.q;
    const auto q_bytes = static_cast<std::int64_t>(openmsa_dtype_bytes(q.dtype));
    s_.step.ahead.begin(row_bytes(k_));
    if (step.is_first) {
      s_.step.ahead.add(span(k_, step.block));
      s_.step.ahead.add(span(v_, step.block));
    }
    for (std::int64_t member = 0; member < step.columns.count; ++member) {
      const std::int32_t query = step.columns.queries[member];
      for (std::int64_t h = 0; h < heads; ++h) {
        s_.step.ahead.add(state_of(query).from(h).o, s_.state.ld * static_cast<std::int64_t>(sizeof(float)));
        s_.step.ahead.add(core::address(q, sequence_.q_begin + query, step.columns.head + h), dim * q_bytes);
      }
    }
  }
  /// A cache line at least.
  std::int64_t row_bytes(const KeyRows& rows) const {
    return std::max<std::int64_t>(
        problem_.plan.config.head_dim * static_cast<std::int64_t>(openmsa_dtype_bytes(rows.dtype)), 64);
  }

  /// Brings the state of the step's query rows up to date with the keys and values loaded.
  void attend(const Step& step) {
    const Columns& columns = step.columns;
    s_.queries.load(problem_.tensors.q, sequence_, columns, static_cast<float>(problem_.plan.softmax_scale));
    load_state(columns);
    s_.step.attend(problem_.plan, sequence_, columns, s_.queries, step.block, s_.max, s_.sum, 0);
    store_state(columns);
  }

  void load_state(const Columns& columns) {
    for (std::int64_t member = 0; member < columns.count; ++member) {
      const RunningSoftmax state = state_of(columns.queries[member]);
      std::copy_n(state.max, columns.heads, s_.max + member * columns.heads);
      std::copy_n(state.sum, columns.heads, s_.sum + member * columns.heads);
    }
    std::fill(s_.max + columns.size(), s_.max + columns.padded(), -kInfinity);
    std::fill(s_.sum + columns.size(), s_.sum + columns.padded(), 0.0f);
  }

  void store_state(const Columns& columns) {
    for (std::int64_t member = 0; member < columns.count; ++member) {
      const RunningSoftmax state = state_of(columns.queries[member]);
      const std::int64_t first = member * columns.heads;
      for (std::int64_t h = 0; h < columns.heads; ++h) {
        tile_ops().scale_add(state.o + h * state.ld, s_.step.pv + (first + h) * state.ld, s_.step.alpha[first + h],
                             state.ld);
      }
      std::copy_n(s_.max + first, columns.heads, state.max);
      std::copy_n(s_.sum + first, columns.heads, state.sum);
    }
  }

  const Problem& problem_;
  const Sequence& sequence_;
  const HeadTile& tile_;
  const KeyRows k_, v_;
  Scratch& s_;
};

void store_tile(const Problem& problem, const HeadTile& tile, const RunningSoftmax& state) {
  const std::int64_t group = problem.plan.group_size;
  for (std::int64_t row = 0; row < tile.count * group; ++row) {
    write_row(problem, tile.sequence.q_begin + tile.first + row / group, tile.head * group + row % group,
              state.from(row));
  }
}

}  // namespace

void sparse_attention(const Problem& problem, Arena& arena, const Loops& loops) {
  const PerThread<Scratch> workspace(arena, problem.plan);
  for_each_item(
      problem, loops, [&](const Sequence& sequence) { return count_tiles(problem, sequence); },
      [&](const Item& item, int slot) {
        Scratch s = workspace[slot];
        const HeadTile tile = tile_of(problem, item);
        TileWalk(problem, tile, s).run();
        store_tile(problem, tile, s.state);
      });
  write_attention_padding(problem);
}

void plan_sparse_attention(const Plan& plan, Arena& arena) { PerThread<Scratch>(arena, plan); }

}  // namespace openmsa::cpu
