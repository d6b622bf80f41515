// Index branch: parameters of the kernels.
#pragma once

#include <cstdint>

#include "cuda/common/query_tile.h"
#include "cuda/common/selection.h"
#include "cuda/common/tensor_view.h"

namespace openmsa::cuda::sm90::prefill {

/// Lengths of the lists that kernels are compiled with.
inline constexpr int kListCapacities[] = {16, 64};

/// 64-row products per consumer warpgroup; long lists need the registers of the second.
constexpr int select_mma_rows(int capacity) { return capacity > 32 ? 1 : 2; }

/// Queries per tile: whole queries, all heads of each, in the (query, head) rows of two warpgroups.
constexpr int select_queries_per_tile(int heads, int capacity) { return 2 * (select_mma_rows(capacity) * 64 / heads); }

struct SelectParams {
  BatchView batch;
  BatchIndex index;
  SelectionRules rules;

  QueryRows index_q;  // [total_q][heads][index_dim]
  std::int32_t heads;
  std::int32_t key_box_rows;
  TokenScale index_k_scale;  // of e4m3 keys

  std::int32_t num_splits;  // parts that the keys of a tile are cut into

  SelectionView topk_indices;

  // With num_splits > 1, the lists of each part: [total_q * heads][num_splits][capacity].
  std::int32_t* partial_keys;
  std::int32_t* partial_blocks;

  ScoreView block_scores;  // instead of topk_indices
  std::int32_t score_columns;
  float index_scale;
};

}  // namespace openmsa::cuda::sm90::prefill
