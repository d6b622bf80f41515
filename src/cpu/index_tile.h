// The index branch on a tile: block scores of some queries, all KV heads at once, against one kv_block of index keys
// that is loaded once.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/problem.h"
#include "cpu/products.h"

namespace openmsa::cpu {

struct IndexTile {
  IndexTile(core::Arena& arena, const core::Plan& plan);

  /// Queries [first, first + count) of a sequence. Column = (query - first) * num_heads_kv + head.
  void load(const core::Problem& problem, const core::Sequence& sequence, std::int64_t first, std::int64_t count);

  /// top[column] = m[query, block, head], times 1/sqrt(index_dim); -inf for a block that the query does not see.
  /// Keys of the next block that the plan's shard holds, where that is below `end`, are fetched meanwhile.
  void score(const core::Problem& problem, const core::Sequence& sequence, std::int64_t block, std::int64_t end);

  Columns columns{};
  float* top;  // [padded columns]

 private:
  void mark_nan(bool are_rows, bool have_scores);

  std::int64_t ld_;      // of scores_
  std::int64_t row_ld_;  // of scores_ for few columns
  ScoreQueries q_;
  ScoreProduct product_;
  FetchList ahead_;
  std::int32_t* queries_;
  float* limit_;
  float* scores_;  // [block_size][padded columns], or [columns][row_ld_] of few
};

}  // namespace openmsa::cpu
