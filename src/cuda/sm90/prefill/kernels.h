// Entry points of the compiled attention kernels: plain functions, so that host code needs no CUTLASS.
#pragma once

#include <cuda.h>
#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm90/prefill/params.h"

namespace openmsa::cuda::sm90::prefill {

struct AttendMaps {
  CUtensorMap kv_outer_q;  // boxes of one query
  CUtensorMap q_outer_q;   // boxes of half a tile's queries
  CUtensorMap k;
  CUtensorMap v;
};

/// The attention of the first `count` of batches after their schedule.
using AttendFunction = void(const AttendBatches& batches, int count, const AttendMaps& maps, Launch launch);

/// Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim, int kBlock>
void launch_attend(const AttendBatches& batches, int count, const AttendMaps& maps, Launch launch);

}  // namespace openmsa::cuda::sm90::prefill
