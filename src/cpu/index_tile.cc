#include "cpu/index_tile.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/work.h"

namespace openmsa::cpu {

namespace {
std::int64_t max_columns(const Plan& plan) {
  return pad_lanes(index_queries_per_tile(plan) * plan.config.num_heads_kv);
}
}  // namespace

IndexTile::IndexTile(Arena& arena, const Plan& plan)
    : top(arena.take<float>(max_columns(plan))),
      ld_(max_columns(plan)),
      row_ld_(pad_lanes(plan.config.block_size)),
      q_(arena, plan.config.index_dim, ld_, multiplies_index_in_pairs(plan)),
      product_(arena, plan.config.block_size, plan.config.index_dim, multiplies_index_in_pairs(plan)),
      ahead_(arena, plan.config.block_size),
      queries_(arena.take<std::int32_t>(index_queries_per_tile(plan))),
      limit_(arena.take<float>(max_columns(plan))),
      scores_(arena.take<float>(pad_lanes(plan.config.block_size) * max_columns(plan))) {}

void IndexTile::load(const Problem& problem, const Sequence& sequence, std::int64_t first, std::int64_t count) {
  std::iota(queries_, queries_ + count, static_cast<std::int32_t>(first));
  columns = {queries_, count, 0, problem.plan.config.num_heads_kv};
  const openmsa_index_q_rounding rounding = problem.plan.config.index_q_rounding;
  if (problem.plan.has_fp8_index() && rounding != OPENMSA_INDEX_Q_EXACT) {
    q_.load_fp8(problem.tensors.index_q, sequence, columns, rounding == OPENMSA_INDEX_Q_SCALED);
  } else {
    q_.load(problem.tensors.index_q, sequence, columns, 1);
  }
}

void IndexTile::score(const Problem& problem, const Sequence& sequence, std::int64_t block, std::int64_t end) {
  const Plan& plan = problem.plan;
  const std::int64_t begin = block * plan.config.block_size, keys = keys_in_block(plan, sequence, block);
  const std::int64_t n = columns.padded();
  core::KeyRows rows = problem.index_k(sequence);
  float scale = static_cast<float>(plan.index_scale);
  if (rows.has_block_scales()) {  // one factor of the maximum
    scale *= rows.scale(begin);
    rows.scales = nullptr;
  }
  const std::int64_t next = block + plan.config.shard_count;
  const std::int64_t next_keys = next < end ? keys_in_block(plan, sequence, next) : 0;
  // A decode step chooses what a prompt does.
  const bool is_few = product_.has_few_columns(q_) && product_.has_exact_row_scores();
  const KeySpan span = {rows, begin, keys};
  if (!is_few || !product_.load_keys_for_rows(span)) product_.load_keys(span);
  ahead_.begin(plan.config.index_dim * static_cast<std::int64_t>(openmsa_dtype_bytes(rows.dtype)));
  ahead_.add({rows, next * plan.config.block_size, next_keys});
  const bool is_partial = causal_limits(sequence, columns, begin, keys, limit_);
  const bool needs_scores = is_few || is_partial || product_.has_scales();
  if (is_few) {
    product_.row_scores(q_, scores_, row_ld_, ahead_.take());
    tile_ops().row_max(scores_, row_ld_, keys, columns.size(), limit_, top);
  } else if (needs_scores) {
    product_.scores(q_, scores_, ld_, ahead_.take());
    tile_ops().column_max(scores_, ld_, keys, n, limit_, top);
  } else {
    product_.column_max(q_, top, ahead_.take());
  }
  const auto is_lowest = [](float score) { return score == -kInfinity; };
  if (std::any_of(top, top + columns.size(), is_lowest)) mark_nan(is_few, needs_scores);
  for (std::int64_t c = 0; c < n; ++c) top[c] = limit_[c] > 0 ? top[c] * scale : -kInfinity;
}

/// A maximum of -inf may have ignored NaN: a column in which every visible score is NaN scores NaN.
void IndexTile::mark_nan(bool are_rows, bool have_scores) {
  if (!have_scores) product_.scores(q_, scores_, ld_);
  for (std::int64_t c = 0; c < columns.size(); ++c) {
    const auto visible = static_cast<std::int64_t>(limit_[c]);
    if (top[c] != -kInfinity || visible == 0) continue;
    const float* const score = scores_ + (are_rows ? c * row_ld_ : c);
    bool all_nan = true;
    for (std::int64_t j = 0; j < visible; ++j) all_nan &= std::isnan(score[j * (are_rows ? 1 : ld_)]);
    if (all_nan) top[c] = std::numeric_limits<float>::quiet_NaN();
  }
}

}  // namespace openmsa::cpu
