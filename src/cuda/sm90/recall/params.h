// Block recall: parameters of its two kernels.
#pragma once

#include "cuda/common/tensor_view.h"
#include "cuda/sm90/dense/params.h"

namespace openmsa::cuda::sm90::recall {

/// block_recall or score_recall, [num_heads_kv][total_q].
struct Figure {
  float* data;  // nullptr: not wanted
  std::int64_t strides[2];
};

/// The mass of kv_blocks, for all KV heads and some of the query tiles (dense/prompt_tile.cuh).
struct RecallParams : dense::PromptParams {
  std::int32_t first_tile;
  std::int32_t tiles;
  std::int32_t max_blocks;  // kv_blocks of the longest sequence
  float* mass;              // [heads][tiles][tile_queries][max_blocks]
  SelectionView topk_indices;
  std::int32_t topk;
  Figure block_recall;
  Figure score_recall;

  /// Masses of a query of a tile.
  OPENMSA_DEVICE float* mass_row(std::int32_t head, std::int32_t tile, std::int32_t query) const {
    const std::int64_t row = (std::int64_t{head} * tiles + (tile - first_tile)) * tile_queries + query;
    return mass + row * max_blocks;
  }
};

}  // namespace openmsa::cuda::sm90::recall
