#include "cpu/kl_tile.h"

namespace openmsa::cpu {

KlKeys::KlKeys(Arena& arena, const Plan& plan)
    : k(arena, plan.config.block_size, plan.config.head_dim, multiplies_in_pairs(plan)),
      index_k(arena, plan.config.block_size, plan.config.index_dim, multiplies_index_in_pairs(plan)) {}

void KlKeys::load(const Problem& problem, const Sequence& sequence, std::int64_t head, std::int64_t block) {
  begin = block * problem.plan.config.block_size;
  count = keys_in_block(problem.plan, sequence, block);
  k.load_keys({problem.k(sequence, head), begin, count});
  index_k.load_keys({problem.index_k(sequence), begin, count});
}

KlTile::KlTile(Arena& arena, const Plan& plan)
    : q(arena, plan.config.head_dim, kMaxColumns, multiplies_in_pairs(plan)),
      index_q(arena, plan.config.index_dim, kMaxColumns, multiplies_index_in_pairs(plan)),
      index_columns{},
      p(arena.take<float>(plan.config.block_size * kMaxColumns)),
      teacher(arena.take<float>(plan.config.block_size * kMaxColumns)),
      scores(arena.take<float>(plan.config.block_size * kMaxColumns)),
      limit(arena.take<float>(kMaxColumns)),
      lse(arena.take<float>(kMaxColumns)),
      index_limit(arena.take<float>(kMaxColumns)),
      index_lse(arena.take<float>(kMaxColumns)),
      weight(arena.take<float>(kMaxColumns)) {}

void KlTile::compute(const Problem& problem, const Sequence& sequence, const Columns& heads, std::int64_t head,
                     const KlKeys& keys, const float* index_lse_rows) {
  const TileOps& ops = tile_ops();
  const Plan& plan = problem.plan;
  index_columns = {heads.queries, heads.count, head, 1};
  q.load(problem.tensors.q, sequence, heads, static_cast<float>(plan.softmax_scale));
  index_q.load(problem.tensors.index_q, sequence, index_columns, static_cast<float>(plan.index_scale));
  is_partial = causal_limits(sequence, heads, keys.begin, keys.count, limit);
  causal_limits(sequence, index_columns, keys.begin, keys.count, index_limit);
  for (std::int64_t c = 0; c < heads.padded(); ++c) {
    const bool is_padding = c >= heads.size();
    const std::int64_t row = is_padding ? 0 : sequence.q_begin + heads.queries[c / heads.heads];
    lse[c] = is_padding ? 0 : core::element<float>(problem.tensors.lse, row, heads.head + c % heads.heads);
  }
  for (std::int64_t c = 0; c < index_columns.padded(); ++c) {
    const std::int64_t row = c < heads.count ? sequence.q_begin + heads.queries[c] : -1;
    index_lse[c] = row < 0 ? 0 : index_lse_rows[row];
    weight[c] = row < 0 ? 0 : static_cast<float>(problem.kl_weight(row));
  }

  keys.k.scores(q, p, kMaxColumns);
  ops.probabilities(p, kMaxColumns, keys.count, heads.padded(), limit, lse);
  keys.index_k.scores(index_q, scores, kMaxColumns);
  const float share = 1.0f / static_cast<float>(heads.heads);
  for (std::int64_t j = 0; j < keys.count; ++j) {
    const float* row = p + j * kMaxColumns;
    for (std::int64_t c = 0; c < index_columns.padded(); ++c) {
      float sum = 0;
      for (std::int64_t h = 0; c < heads.count && h < heads.heads; ++h) sum += row[c * heads.heads + h];
      teacher[j * kMaxColumns + c] = sum * share;
    }
  }
}

bool counts_in_kl(const Problem& problem, const Sequence& sequence, std::int64_t head, std::int64_t query) {
  const std::int64_t row = sequence.q_begin + query, group = problem.plan.group_size;
  if (problem.kl_weight(row) == 0) return false;
  for (std::int64_t h = head * group; h < (head + 1) * group; ++h) {
    if (core::element<float>(problem.tensors.lse, row, h) != -kInfinity) return true;
  }
  return false;
}

}  // namespace openmsa::cpu
