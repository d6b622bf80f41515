// How a call is divided into work items. The division follows from shapes alone, and no result depends on which thread
// runs an item.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "core/problem.h"
#include "cpu/threads.h"

namespace openmsa::cpu {

/// One S per thread, carved from the workspace. S is constructed from (Arena&, const Plan&).
template <class S>
class PerThread {
 public:
  PerThread(core::Arena& arena, const core::Plan& plan) : plan_(plan) {
    core::Arena measure;
    S(measure, plan);
    bytes_ = static_cast<std::int64_t>(measure.used());
    memory_ = arena.take<std::byte>(bytes_ * plan.num_threads);
  }
  S operator[](int slot) const {
    core::Arena arena(memory_ + slot * bytes_);
    return S(arena, plan_);
  }

 private:
  const core::Plan& plan_;
  std::int64_t bytes_;
  std::byte* memory_;
};

/// Item `index` of sequence `b`.
struct Item {
  core::Sequence sequence;
  std::int64_t b;
  std::int64_t index;
};

/// Calls body(item, slot) for the items of all sequences, of which `count(sequence)` belong to each.
template <class Count, class Body>
void for_each_item(const core::Problem& problem, const Threads& threads, const Count& count, const Body& body) {
  std::int64_t total = 0;
  for (std::int64_t b = 0; b < problem.batch; ++b) total += count(problem.sequence(b));
  threads.for_each(total, [&](std::int64_t item, int slot) {
    std::int64_t b = 0, index = item;
    core::Sequence sequence = problem.sequence(0);
    for (std::int64_t here = count(sequence); index >= here; here = count(sequence)) {
      index -= here;
      sequence = problem.sequence(++b);
    }
    body(Item{sequence, b, index}, slot);
  });
}

/// Queries per tile: at most 64, and at most 512 query rows of one KV head, so that a tile's state stays in the L2
/// cache.
inline std::int64_t queries_per_tile(const core::Plan& plan) {
  return std::clamp<std::int64_t>(512 / plan.group_size, 1, 64);
}

/// The forward pass has less to keep per query, and the larger a tile, the more of its queries share a kv_block: as
/// large as leaves 64 items to share out, up to 4096 query rows.
inline std::int64_t max_forward_queries(const core::Plan& plan) {
  return std::clamp<std::int64_t>(4096 / plan.group_size, 1, 1024);
}
inline std::int64_t forward_queries_per_tile(const core::Plan& plan, const core::Sequence& sequence) {
  const std::int64_t queries = sequence.seqlen_q * plan.config.num_heads_kv / 64;
  return std::clamp(queries, queries_per_tile(plan), max_forward_queries(plan));
}

/// kv_blocks of a sequence.
inline std::int64_t num_blocks(const core::Plan& plan, const core::Sequence& sequence) {
  return core::ceil_div(sequence.seqlen_k, plan.config.block_size);
}

/// kv_blocks of which a query at `position` sees some key.
inline std::int64_t visible_blocks(const core::Plan& plan, std::int64_t position) {
  return position < 0 ? 0 : position / plan.config.block_size + 1;
}

/// Keys of kv_block `block`: all of them but in the sequence's last one.
inline std::int64_t keys_in_block(const core::Plan& plan, const core::Sequence& sequence, std::int64_t block) {
  return std::min<std::int64_t>(plan.config.block_size, sequence.seqlen_k - block * plan.config.block_size);
}

// Few queries over many keys (decode): the keys are split into segments, whose results are merged.

/// Sequences with more queries than this have tiles enough to share out and are not split.
inline constexpr std::int64_t kMaxDecodeQueries = 16;

inline bool is_decode(const core::Sequence& sequence) { return sequence.seqlen_q <= kMaxDecodeQueries; }

/// Most segments of one sequence under this plan: enough to make 64 items of a full batch.
inline std::int64_t max_segments(const core::Plan& plan) {
  return std::clamp<std::int64_t>(64 / plan.config.max_batch, 1, 32);
}

inline std::int64_t num_segments(const core::Plan& plan, const core::Sequence& sequence) {
  constexpr std::int64_t kMinBlocks = 4;
  if (!is_decode(sequence)) return 1;
  return std::clamp<std::int64_t>(num_blocks(plan, sequence) / kMinBlocks, 1, max_segments(plan));
}

/// Half-open range of kv_blocks of one segment.
struct Segment {
  std::int64_t begin;
  std::int64_t end;
};
inline Segment segment(const core::Plan& plan, const core::Sequence& sequence, std::int64_t index) {
  const std::int64_t blocks = num_blocks(plan, sequence), segments = num_segments(plan, sequence);
  return {blocks * index / segments, blocks * (index + 1) / segments};
}

/// Query rows that can belong to split sequences at once, and the place of one of them.
inline std::int64_t max_decode_rows(const core::Plan& plan) {
  return std::min(plan.config.max_total_q, plan.config.max_batch * kMaxDecodeQueries);
}
inline std::int64_t decode_row(const core::Plan& plan, std::int64_t b, const core::Sequence& sequence, std::int64_t t) {
  const bool by_row = plan.config.max_total_q <= plan.config.max_batch * kMaxDecodeQueries;
  return by_row ? sequence.q_begin + t : b * kMaxDecodeQueries + t;
}

}  // namespace openmsa::cpu
