// Entry points of the compiled KL kernels: plain functions, so that host code needs no CUTLASS.
#pragma once

#include <cuda.h>
#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm90/training/kl/params.h"

namespace openmsa::cuda::sm90::training::kl {

/// TileKernels::teacher. Maps: boxes of one query, and of 128 keys of one head.
using TeacherFunction = void(const Params& p, const CUtensorMap& q, const CUtensorMap& k, Launch launch);
/// TileKernels::index_lse and kl; index_k: boxes of 128 keys.
using IndexKeysFunction = void(const Params& p, const CUtensorMap& index_k, Launch launch);

/// Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kDtype, int kDim>
void launch_teacher(const Params& p, const CUtensorMap& q, const CUtensorMap& k, Launch launch);
template <openmsa_dtype kDtype, int kIndexDim>
void launch_index_lse(const Params& p, const CUtensorMap& index_k, Launch launch);
template <openmsa_dtype kDtype, int kIndexDim>
void launch_kl(const Params& p, const CUtensorMap& index_k, Launch launch);

}  // namespace openmsa::cuda::sm90::training::kl
