// The step that attention of prompts repeats, sparse and dense: some query rows meet a kv_block.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/problem.h"
#include "cpu/products.h"
#include "cpu/work.h"

namespace openmsa::cpu {

/// A kv_block of k or v.
inline KeySpan block_span(const core::Plan& plan, const core::Sequence& sequence, const core::KeyRows& rows,
                          std::int64_t block) {
  return {rows, block * plan.config.block_size, keys_in_block(plan, sequence, block)};
}

struct AttentionStep {
  AttentionStep(core::Arena& arena, const core::Plan& plan);

  void load(const KeySpan& k, const KeySpan& v);

  /// With the keys and values loaded, those of kv_block `block`:
  ///   s = k q^T,  max' = max(max, max_j s),  p = exp(s - max'),  alpha = exp(max - max')
  ///   sum' = alpha sum + sum_j p,  pv = p v
  /// max and sum have room for the columns and their padding. Of what `ahead` lists it fetches its share beside
  /// `later_steps` steps like this one.
  void attend(const core::Plan& plan, const core::Sequence& sequence, const Columns& columns,
              const ScoreQueries& queries, std::int64_t block, float* max, float* sum, std::int64_t later_steps);

  ScoreProduct qk;
  ValueProduct values;
  FetchList ahead;
  std::int64_t speed;
  float* scores;  // [block_size][kMaxColumns]
  float* pv;      // [kMaxColumns][pad_lanes(head_dim)]
  float *limit, *alpha;
};

}  // namespace openmsa::cpu
