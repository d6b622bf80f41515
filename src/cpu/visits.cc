#include "cpu/visits.h"

#include <algorithm>
#include <numeric>

namespace openmsa::cpu {

using core::element;

namespace {

/// Sorts the tile's queries by the kv_blocks that they have chosen: those of block b are queries[offsets[b]] up to
/// queries[offsets[b + 1]], ascending; b < blocks.
void sort_by_block(const Problem& problem, const HeadTile& tile, std::int64_t blocks, std::int64_t* offsets,
                   std::int32_t* queries) {
  const openmsa_tensor& indices = problem.tensors.topk_indices;
  const auto for_each_pair = [&](const auto& body) {
    for (std::int64_t t = tile.first; t < tile.first + tile.count; ++t) {
      const std::int64_t position = tile.sequence.position(t);
      for (std::int64_t slot = 0; slot < indices.shape[2]; ++slot) {
        const std::int64_t block = element<std::int32_t>(indices, tile.head, tile.sequence.q_begin + t, slot);
        if (block < 0) break;
        const bool is_visible = block * problem.plan.config.block_size <= position;  // else in the query's future
        if (is_visible && problem.plan.holds(block)) body(block, t);
      }
    }
  };
  std::fill(offsets, offsets + blocks + 1, 0);
  for_each_pair([&](std::int64_t block, std::int64_t) { ++offsets[block + 1]; });
  std::partial_sum(offsets, offsets + blocks + 1, offsets);
  for_each_pair([&](std::int64_t block, std::int64_t t) { queries[offsets[block]++] = static_cast<std::int32_t>(t); });
  // Each offset now stands at its block's end, which is the next block's begin.
  std::copy_backward(offsets, offsets + blocks, offsets + blocks + 1);
  offsets[0] = 0;
}

}  // namespace

TileVisits::TileVisits(Arena& arena, const Plan& plan, std::int64_t max_queries)
    : offsets_(arena.take<std::int64_t>(plan.max_blocks + 1)),
      queries_(arena.take<std::int32_t>(max_queries * plan.config.topk)) {}

void TileVisits::begin_sparse(const Problem& problem, const HeadTile& tile) {
  dense_ = false;
  cursor_ = 0;
  end_ = visible_blocks(problem.plan, tile.sequence.position(tile.first + tile.count - 1));
  sort_by_block(problem, tile, end_, offsets_, queries_);
}

void TileVisits::begin_dense(const Plan& plan, const HeadTile& tile) {
  dense_ = true;
  sequence_ = tile.sequence;
  block_size_ = plan.config.block_size;
  count_ = tile.count;
  std::iota(queries_, queries_ + tile.count, static_cast<std::int32_t>(tile.first));
  cursor_ = 0;
  end_ = visible_blocks(plan, tile.sequence.position(tile.first + tile.count - 1));
}

bool TileVisits::next(Visit& visit) { return dense_ ? next_dense(visit) : next_sparse(visit); }

bool TileVisits::next_sparse(Visit& visit) {
  while (cursor_ < end_ && offsets_[cursor_ + 1] == offsets_[cursor_]) ++cursor_;  // nobody's choice
  if (cursor_ == end_) return false;
  visit = {cursor_, queries_ + offsets_[cursor_], offsets_[cursor_ + 1] - offsets_[cursor_]};
  ++cursor_;
  return true;
}

bool TileVisits::next_dense(Visit& visit) {
  if (cursor_ >= end_) return false;
  visit.block = cursor_++;
  // The first query that sees the block's first key; later queries see it too.
  const std::int64_t needed = visit.block * block_size_ - sequence_.position(queries_[0]);
  const std::int64_t skip = std::max<std::int64_t>(needed, 0);
  visit.queries = queries_ + skip;
  visit.count = count_ - skip;
  return true;
}

void begin_visits(TileVisits& visits, const Problem& problem, const HeadTile& tile) {
  if (core::present(problem.tensors.topk_indices)) {
    visits.begin_sparse(problem, tile);
  } else {
    visits.begin_dense(problem.plan, tile);
  }
}

Visitors::Visitors(Arena& arena, const Plan& plan)
    : offsets_(arena.take<std::int64_t>(plan.config.max_batch * plan.config.num_heads_kv * (plan.max_blocks + 1))),
      queries_(arena.take<std::int32_t>(plan.config.num_heads_kv * plan.config.max_total_q * plan.config.topk)) {}

std::int64_t* Visitors::offsets(const Problem& problem, std::int64_t b, std::int64_t head) const {
  const Plan& plan = problem.plan;
  return offsets_ + (b * plan.config.num_heads_kv + head) * (plan.max_blocks + 1);
}

std::int32_t* Visitors::queries(const Problem& problem, const Sequence& sequence, std::int64_t head) const {
  return queries_ + (head * problem.total_q + sequence.q_begin) * problem.plan.config.topk;
}

void Visitors::build(const Problem& problem, const Loops& loops) {
  if (!core::present(problem.tensors.topk_indices)) {
    std::iota(queries_, queries_ + problem.total_q, 0);
    return;
  }
  const std::int64_t heads = problem.plan.config.num_heads_kv;
  for_each_item(
      problem, loops, [heads](const Sequence&) { return heads; },
      [&](const Item& item, int) {
        const Sequence& sequence = item.sequence;
        sort_by_block(problem, {sequence, item.index, 0, sequence.seqlen_q}, num_blocks(problem.plan, sequence),
                      offsets(problem, item.b, item.index), queries(problem, sequence, item.index));
      });
}

Visit Visitors::of(const Problem& problem, const HeadBlock& at) const {
  if (!core::present(problem.tensors.topk_indices)) {
    const std::int64_t needed = at.block * problem.plan.config.block_size - at.sequence.position(0);
    const std::int64_t first = std::clamp<std::int64_t>(needed, 0, at.sequence.seqlen_q);
    return {at.block, queries_ + first, at.sequence.seqlen_q - first};
  }
  const std::int64_t* offset = offsets(problem, at.b, at.head) + at.block;
  return {at.block, queries(problem, at.sequence, at.head) + offset[0], offset[1] - offset[0]};
}

}  // namespace openmsa::cpu
