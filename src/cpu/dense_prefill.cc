// Dense attention of prompts. One work item is a tile of queries of one KV head, in chunks of columns whose queries and
// running sums stay in the L2 cache; each kv_block that they see is loaded once and meets one chunk after the other,
// while the next kv_block is fetched. The arithmetic is that of sparse_attention.cc, with its bits.

#include <algorithm>
#include <numeric>

#include "cpu/attention_step.h"
#include "cpu/running_softmax.h"
#include "cpu/stages.h"
#include "cpu/work.h"

namespace openmsa::cpu {
namespace {

/// Chunks of a tile.
std::int64_t max_chunks(const Plan& plan) {
  return core::ceil_div(dense_queries_per_tile(plan), max_chunk(plan.group_size));
}

struct Scratch {
  Scratch(Arena& arena, const Plan& plan)
      : state(arena, max_chunks(plan) * kMaxColumns, pad_lanes(plan.config.head_dim)),
        queries(take_queries(arena, max_chunks(plan), plan.config.head_dim, kMaxColumns, multiplies_in_pairs(plan))),
        members(arena.take<std::int32_t>(dense_queries_per_tile(plan))),
        step(arena, plan) {}

  RunningSoftmax state;   // rows [chunk][kMaxColumns]
  ScoreQueries* queries;  // [chunks]
  std::int32_t* members;  // of the tile
  AttentionStep step;
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
      s_.step.load(span(k_, block), span(v_, block));
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
    return block_span(problem_.plan, tile_.sequence, rows, block);
  }

  /// The first chunk of which some query sees the kv_block.
  std::int64_t first_to_see(std::int64_t block) const {
    const std::int64_t past = block * problem_.plan.config.block_size - tile_.sequence.position(tile_.first);
    return std::max<std::int64_t>(past, 0) / chunk_;
  }

  void fetch(std::int64_t block, std::int64_t end) {
    const std::int64_t bytes = static_cast<std::int64_t>(openmsa_dtype_bytes(problem_.plan.config.kv_dtype));
    s_.step.ahead.begin(problem_.plan.config.head_dim * bytes);
    if (block == end) return;
    s_.step.ahead.add(span(k_, block));
    s_.step.ahead.add(span(v_, block));
  }

  /// Brings the state of a chunk up to date with the keys and values loaded. Fetches its share of the next ones.
  void attend(std::int64_t chunk, std::int64_t block) {
    const Columns columns = this->columns(chunk);
    const RunningSoftmax state = s_.state.from(chunk * kMaxColumns);
    s_.step.attend(problem_.plan, tile_.sequence, columns, s_.queries[chunk], block, state.max, state.sum,
                   chunks_ - 1 - chunk);
    for (std::int64_t c = 0; c < columns.size(); ++c) {
      tile_ops().scale_add(state.o + c * state.ld, s_.step.pv + c * state.ld, s_.step.alpha[c], state.ld);
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
