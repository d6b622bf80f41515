// Entry points of the compiled kernels of dense attention: plain functions, so that host code needs no CUTLASS.
#pragma once

#include <cuda.h>
#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm90/dense/params.h"

namespace openmsa::cuda::sm90::dense {

using PromptFunction = void(const PromptParams& p, const CUtensorMap& q, const CUtensorMap& k, const CUtensorMap& v,
                            Launch launch);
using DecodeFunction = void(const DecodeParams& p, const CUtensorMap& k, const CUtensorMap& v, Launch launch);

/// kCached: of k and v. Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kDtype, int kDim>
void launch_prompt(const PromptParams& p, const CUtensorMap& q, const CUtensorMap& k, const CUtensorMap& v,
                   Launch launch);
template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_decode(const DecodeParams& p, const CUtensorMap& k, const CUtensorMap& v, Launch launch);

}  // namespace openmsa::cuda::sm90::dense
