// Entry points of the compiled kernels: plain functions, so that host code needs no CUTLASS.
#pragma once

#include <cuda.h>
#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm90/training/params.h"

namespace openmsa::cuda::sm90::training {

struct BackwardMaps {
  CUtensorMap q, d_o;  // boxes of one query; rows past total_q read as zeros
  CUtensorMap k, v;    // boxes of 128 keys of one head
};

/// TileKernels::backward.
using BackwardFunction = void(const BackwardParams& p, const BackwardMaps& maps, Launch launch);

/// Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kDtype, int kDim, TeacherMeans kMeans>
void launch_backward(const BackwardParams& p, const BackwardMaps& maps, Launch launch);

}  // namespace openmsa::cuda::sm90::training
