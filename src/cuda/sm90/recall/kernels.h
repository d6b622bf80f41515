// Entry points of the compiled kernels of block recall.
#pragma once

#include <cuda.h>
#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm90/recall/params.h"

namespace openmsa::cuda::sm90::recall {

using RecallFunction = void(const RecallParams& p, const CUtensorMap& q, const CUtensorMap& k, Launch launch);

/// The masses of p.tiles tiles, then their recalls. Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kDtype, int kDim>
void launch_recall(const RecallParams& p, const CUtensorMap& q, const CUtensorMap& k, Launch launch);

void launch_compare(const RecallParams& p, Launch launch);

}  // namespace openmsa::cuda::sm90::recall
