// Standalone top-k over a score matrix: parameters of the kernel.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/common/selection.h"

namespace openmsa::cuda::sm90 {

struct TopkParams {
  BatchView batch;
  SelectionRules rules;
  std::int32_t heads;

  const float* block_scores;  // [heads][total_q][columns]
  std::int64_t score_strides[3];

  std::int32_t* topk_indices;  // [heads][total_q][topk]
  std::int64_t topk_strides[3];
};

}  // namespace openmsa::cuda::sm90
