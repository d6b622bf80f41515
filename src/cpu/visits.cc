#include "cpu/visits.h"

#include <algorithm>
#include <numeric>

namespace openmsa::cpu {

using core::element;
using core::Problem;
using core::Sequence;

TileVisits::TileVisits(core::Arena& arena, const core::Plan& plan, std::int64_t max_queries)
    : pairs_(arena.take<std::uint64_t>(max_queries * plan.config.topk)),
      queries_(arena.take<std::int32_t>(max_queries * plan.config.topk)) {}

void TileVisits::begin_sparse(const Problem& problem, const Sequence& sequence, std::int64_t head, std::int64_t first,
                              std::int64_t count) {
  const openmsa_tensor& indices = problem.tensors.topk_indices;
  dense_ = false;
  cursor_ = end_ = 0;
  for (std::int64_t t = first; t < first + count; ++t) {
    const std::int64_t position = sequence.position(t);
    for (std::int64_t slot = 0; slot < indices.shape[2]; ++slot) {
      const std::int64_t block = element<std::int32_t>(indices, head, sequence.q_begin + t, slot);
      if (block < 0) break;
      if (block * problem.plan.config.block_size > position) continue;  // lies in the query's future
      pairs_[end_++] = static_cast<std::uint64_t>(block) << 32 | static_cast<std::uint64_t>(t);
    }
  }
  std::sort(pairs_, pairs_ + end_);
  for (std::int64_t i = 0; i < end_; ++i) queries_[i] = static_cast<std::int32_t>(pairs_[i] & 0xffffffffu);
}

void TileVisits::begin_dense(const core::Plan& plan, const Sequence& sequence, std::int64_t first, std::int64_t count) {
  dense_ = true;
  sequence_ = sequence;
  block_size_ = plan.config.block_size;
  count_ = count;
  std::iota(queries_, queries_ + count, static_cast<std::int32_t>(first));
  const std::int64_t last_position = sequence.position(first + count - 1);
  cursor_ = 0;
  end_ = last_position < 0 ? 0 : last_position / block_size_ + 1;
}

bool TileVisits::next(Visit& visit) { return dense_ ? next_dense(visit) : next_sparse(visit); }

std::int64_t TileVisits::next_block() const {
  if (cursor_ >= end_) return -1;
  return dense_ ? cursor_ : static_cast<std::int64_t>(pairs_[cursor_] >> 32);
}

bool TileVisits::next_sparse(Visit& visit) {
  if (cursor_ == end_) return false;
  const std::int64_t begin = cursor_;
  visit.block = static_cast<std::int64_t>(pairs_[begin] >> 32);
  while (cursor_ < end_ && static_cast<std::int64_t>(pairs_[cursor_] >> 32) == visit.block) ++cursor_;
  visit.queries = queries_ + begin;
  visit.count = cursor_ - begin;
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

void begin_visits(TileVisits& visits, const Problem& problem, const Sequence& sequence, std::int64_t head,
                  std::int64_t first, std::int64_t count) {
  if (core::present(problem.tensors.topk_indices)) {
    visits.begin_sparse(problem, sequence, head, first, count);
  } else {
    visits.begin_dense(problem.plan, sequence, first, count);
  }
}

Visitors::Visitors(core::Arena& arena, const core::Plan& plan)
    : offsets_(arena.take<std::int64_t>(plan.config.max_batch * plan.config.num_heads_kv * (plan.max_blocks + 1))),
      queries_(arena.take<std::int32_t>(plan.config.num_heads_kv * plan.config.max_total_q * plan.config.topk)) {}

std::int64_t* Visitors::offsets(const Problem& problem, std::int64_t b, std::int64_t head) const {
  const core::Plan& plan = problem.plan;
  return offsets_ + (b * plan.config.num_heads_kv + head) * (plan.max_blocks + 1);
}

std::int32_t* Visitors::queries(const Problem& problem, const Sequence& sequence, std::int64_t head) const {
  return queries_ + (head * problem.total_q + sequence.q_begin) * problem.plan.config.topk;
}

void Visitors::build(const Problem& problem, const Threads& threads) {
  if (!core::present(problem.tensors.topk_indices)) {
    std::iota(queries_, queries_ + problem.total_q, 0);
    return;
  }
  const std::int64_t heads = problem.plan.config.num_heads_kv;
  for_each_item(
      problem, threads, [heads](const Sequence&) { return heads; },
      [&](const Item& item, int) { build_one(problem, item.b, item.sequence, item.index); });
}

/// A counting sort of (kv_block, query) by kv_block, queries ascending.
void Visitors::build_one(const Problem& problem, std::int64_t b, const Sequence& sequence, std::int64_t head) {
  const openmsa_tensor& indices = problem.tensors.topk_indices;
  const std::int64_t blocks = num_blocks(problem.plan, sequence);
  std::int64_t* offset = offsets(problem, b, head);
  std::int32_t* sorted = queries(problem, sequence, head);
  const auto for_each_pair = [&](const auto& body) {
    for (std::int64_t t = 0; t < sequence.seqlen_q; ++t) {
      for (std::int64_t slot = 0; slot < indices.shape[2]; ++slot) {
        const std::int64_t block = element<std::int32_t>(indices, head, sequence.q_begin + t, slot);
        if (block < 0) break;
        if (block * problem.plan.config.block_size <= sequence.position(t)) body(block, t);
      }
    }
  };
  std::fill(offset, offset + blocks + 1, 0);
  for_each_pair([&](std::int64_t block, std::int64_t) { ++offset[block + 1]; });
  std::partial_sum(offset, offset + blocks + 1, offset);
  for_each_pair([&](std::int64_t block, std::int64_t t) { sorted[offset[block]++] = static_cast<std::int32_t>(t); });
  // Each offset now stands at its block's end, which is the next block's begin.
  std::copy_backward(offset, offset + blocks, offset + blocks + 1);
  offset[0] = 0;
}

Visit Visitors::of(const Problem& problem, std::int64_t b, const Sequence& sequence, std::int64_t head,
                   std::int64_t block) const {
  if (!core::present(problem.tensors.topk_indices)) {
    const std::int64_t needed = block * problem.plan.config.block_size - sequence.position(0);
    const std::int64_t first = std::clamp<std::int64_t>(needed, 0, sequence.seqlen_q);
    return {block, queries_ + first, sequence.seqlen_q - first};
  }
  const std::int64_t* offset = offsets(problem, b, head);
  return {block, queries(problem, sequence, head) + offset[block], offset[block + 1] - offset[block]};
}

}  // namespace openmsa::cpu
