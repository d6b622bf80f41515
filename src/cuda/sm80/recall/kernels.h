// Entry points of the compiled kernels of block recall.
#pragma once

#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm80/recall/params.h"

namespace openmsa::cuda::sm80::recall {

/// The masses of p.tiles tiles, then their recalls.
using RecallFunction = void(const RecallParams& p, Launch launch);

/// Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kDtype, int kDim>
void launch_recall(const RecallParams& p, Launch launch);

}  // namespace openmsa::cuda::sm80::recall
