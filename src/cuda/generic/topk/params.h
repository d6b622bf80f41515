// Standalone top-k over a score matrix: parameters of the kernel.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/common/selection.h"
#include "cuda/common/tensor_view.h"

namespace openmsa::cuda::generic {

struct TopkParams {
  BatchView batch;
  SelectionRules rules;
  std::int32_t heads;

  ScoreView block_scores;
  SelectionView topk_indices;
};

}  // namespace openmsa::cuda::generic
