// Index branch: parameters of the kernels.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/common/selection.h"
#include "cuda/common/token_scale.h"

namespace openmsa::cuda::sm90 {

/// 64-row products per consumer warpgroup; long lists need the registers of the second.
constexpr int select_mma_rows(int capacity) { return capacity > 32 ? 1 : 2; }

/// Queries per tile: whole queries, all heads of each, in the (query, head) rows of two warpgroups.
constexpr int select_queries_per_tile(int heads, int capacity) { return 2 * (select_mma_rows(capacity) * 64 / heads); }

struct SelectParams {
  BatchView batch;
  BatchIndex index;
  SelectionRules rules;

  const void* index_q;  // [total_q][heads][index_dim]
  std::int64_t q_row_stride;
  std::int64_t q_head_stride;
  std::int32_t heads;
  std::int32_t key_box_rows;
  TokenScale index_k_scale;  // of e4m3 keys

  std::int32_t num_splits;  // parts that the keys of a tile are cut into

  // topk_indices [heads][total_q][topk]
  std::int32_t* topk_indices;
  std::int64_t topk_strides[3];

  // With num_splits > 1, the lists of each part: [total_q * heads][num_splits][capacity].
  std::int32_t* partial_keys;
  std::int32_t* partial_blocks;

  // block_scores [heads][total_q][columns], instead of topk_indices
  float* block_scores;
  std::int64_t score_strides[3];
  std::int32_t score_columns;
  float index_scale;
};

}  // namespace openmsa::cuda::sm90
