// Entry points of the compiled kernels of the index branch: plain functions, so that host code needs no CUTLASS.
#pragma once

#include <cuda.h>
#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm90/prefill/select/params.h"

namespace openmsa::cuda::sm90::prefill {

/// Index branch with selection, or block scores; max_tiles bounds the number of query tiles.
using SelectFunction = void(const SelectParams& p, const CUtensorMap& index_k, int max_tiles, Launch launch);

/// kDtype: of index_q; kCached: of index_k. Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim, int kBlock, int kCapacity>
void launch_select(const SelectParams& p, const CUtensorMap& index_k, int max_tiles, Launch launch);

}  // namespace openmsa::cuda::sm90::prefill
