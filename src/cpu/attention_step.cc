#include "cpu/attention_step.h"

namespace openmsa::cpu {

AttentionStep::AttentionStep(core::Arena& arena, const core::Plan& plan)
    : qk(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)),
      values(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)),
      ahead(arena, plan.config.block_size),
      speed(product_speed(multiplies_in_pairs(plan))),
      scores(arena.take<float>(plan.config.block_size * kMaxColumns)),
      pv(arena.take<float>(kMaxColumns * pad_lanes(plan.config.head_dim))),
      limit(arena.take<float>(kMaxColumns)),
      alpha(arena.take<float>(kMaxColumns)) {}

void AttentionStep::load(const KeySpan& k, const KeySpan& v) {
  qk.load_keys(k);
  values.load(v);
}

void AttentionStep::attend(const core::Plan& plan, const core::Sequence& sequence, const Columns& columns,
                           const ScoreQueries& queries, std::int64_t block, float* max, float* sum,
                           std::int64_t later_steps) {
  const std::int64_t keys = keys_in_block(plan, sequence, block), size = columns.size();
  const bool is_partial = causal_limits(sequence, columns, block * plan.config.block_size, keys, limit);
  const StepTimes times = step_times(plan, size, false, speed);
  const std::int64_t later = later_steps * (times.scores + times.softmax + times.values);
  qk.scores(queries, scores, kMaxColumns, ahead.take(times.scores, times.softmax + times.values + later));
  tile_ops().softmax_columns(scores, kMaxColumns, keys, columns.padded(), limit, max, sum, alpha,
                             ahead.take(times.softmax, times.values + later));
  values.multiply(scores, size, limit, is_partial, pv, false, ahead.take(times.values, later));
}

}  // namespace openmsa::cpu
