// How a call is divided into work items. The division follows from shapes alone, and no result depends on which thread
// runs an item.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "core/problem.h"
#include "cpu/heuristics.h"
#include "cpu/loops.h"

namespace openmsa::cpu {

using core::Arena;
using core::Plan;
using core::Problem;
using core::Sequence;

/// One S per thread, carved from the workspace. S is constructed from (Arena&, const Plan&).
template <class S>
class PerThread {
 public:
  PerThread(Arena& arena, const Plan& plan) : plan_(plan) {
    Arena measure;
    S(measure, plan);
    bytes_ = static_cast<std::int64_t>(measure.used());
    memory_ = arena.take<std::byte>(bytes_ * plan.num_threads);
  }
  S operator[](int slot) const {
    Arena arena(memory_ + slot * bytes_);
    return S(arena, plan_);
  }

 private:
  const Plan& plan_;
  std::int64_t bytes_;
  std::byte* memory_;
};

/// Item `index` of sequence `b`.
struct Item {
  Sequence sequence;
  std::int64_t b;
  std::int64_t index;
};

/// Calls body(item, slot) for the items of all sequences, of which `count(sequence)` belong to each.
template <class Count, class Body>
void for_each_item(const Problem& problem, const Loops& loops, const Count& count, const Body& body) {
  std::int64_t total = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) loops.ends[b] = total += count(problem.sequence(b));
  const std::int64_t* const ends = loops.ends;
  loops.threads.for_each(total, [&](std::int64_t item, int slot) {
    const std::int64_t b = std::upper_bound(ends, ends + problem.batch, item) - ends;
    body(Item{problem.sequence(b), b, b == 0 ? item : item - ends[b - 1]}, slot);
  });
}

/// Queries [first, first + count) of one sequence and KV head.
struct HeadTile {
  Sequence sequence;
  std::int64_t head;
  std::int64_t first;
  std::int64_t count;
};

/// Calls body(tile, slot) for the tiles of queries_per_tile queries of all sequences and KV heads.
template <class Body>
void for_each_query_tile(const Problem& problem, const Loops& loops, const Body& body) {
  const std::int64_t size = queries_per_tile(problem.plan), heads = problem.plan.config.num_heads_kv;
  for_each_item(
      problem, loops, [&](const Sequence& sequence) { return core::ceil_div(sequence.seqlen_q, size) * heads; },
      [&](const Item& item, int slot) {
        const std::int64_t first = item.index / heads * size;
        body(HeadTile{item.sequence, item.index % heads, first, std::min(size, item.sequence.seqlen_q - first)}, slot);
      });
}

/// kv_blocks of a sequence.
inline std::int64_t num_blocks(const Plan& plan, const Sequence& sequence) {
  return core::ceil_div(sequence.seqlen_k, plan.config.block_size);
}

/// kv_block `block` of sequence `b`, for one KV head.
struct HeadBlock {
  Sequence sequence;
  std::int64_t b;
  std::int64_t head;
  std::int64_t block;
};

/// Calls body(block, slot) for the kv_blocks of all sequences and KV heads.
template <class Body>
void for_each_key_block(const Problem& problem, const Loops& loops, const Body& body) {
  const std::int64_t heads = problem.plan.config.num_heads_kv;
  for_each_item(
      problem, loops, [&](const Sequence& sequence) { return num_blocks(problem.plan, sequence) * heads; },
      [&](const Item& item, int slot) {
        body(HeadBlock{item.sequence, item.b, item.index % heads, item.index / heads}, slot);
      });
}

/// kv_blocks of which a query at `position` sees some key.
inline std::int64_t visible_blocks(const Plan& plan, std::int64_t position) {
  return position < 0 ? 0 : position / plan.config.block_size + 1;
}

/// Keys of kv_block `block`: all of them but in the sequence's last one.
inline std::int64_t keys_in_block(const Plan& plan, const Sequence& sequence, std::int64_t block) {
  return std::min<std::int64_t>(plan.config.block_size, sequence.seqlen_k - block * plan.config.block_size);
}

/// Half-open range of kv_blocks of one segment.
struct Segment {
  std::int64_t begin;
  std::int64_t end;
};
inline Segment segment(const Plan& plan, const Sequence& sequence, std::int64_t index) {
  const std::int64_t blocks = num_blocks(plan, sequence), segments = num_segments(plan, sequence);
  return {blocks * index / segments, blocks * (index + 1) / segments};
}

/// Query rows that can belong to split sequences at once, and the place of one of them.
inline std::int64_t max_decode_rows(const Plan& plan) {
  return std::min(plan.config.max_total_q, plan.config.max_batch * kMaxDecodeQueries);
}
inline std::int64_t decode_row(const Plan& plan, std::int64_t b, const Sequence& sequence, std::int64_t t) {
  const bool by_row = plan.config.max_total_q <= plan.config.max_batch * kMaxDecodeQueries;
  return by_row ? sequence.q_begin + t : b * kMaxDecodeQueries + t;
}

}  // namespace openmsa::cpu
