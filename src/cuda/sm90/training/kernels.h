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

/// Adds the gradients of p.work's items to p.d_q_sums and p.d_kv_sums; writes p.teacher where that is wanted.
using BackwardFunction = void(const BackwardParams& p, const BackwardMaps& maps, Launch launch);

/// Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kDtype, int kDim, TeacherMeans kMeans>
void launch_backward(const BackwardParams& p, const BackwardMaps& maps, Launch launch);

/// in.bounds of all sequences and KV heads, whose kv_blocks `lists` counts. `dtype`: of k and v.
void launch_key_bounds(const generic::ListParams& lists, const KeyInputs& in, openmsa_dtype dtype, Launch launch);

/// p.stats.keys of the batch's rows.
void launch_row_bounds(const BackwardParams& p, const SeenKeys& in, Launch launch);

/// The rest of p.stats. `dtype`: of d_o; o has it too, or fp32.
void launch_row_stats(const BackwardParams& p, const RowInputs& in, openmsa_dtype dtype, openmsa_dtype o_dtype,
                      Launch launch);

/// d_q of the batch's rows. `dtype`: the plan's.
void launch_query_gradient(const BackwardParams& p, const GradientRows& d_q, float softmax_scale, openmsa_dtype dtype,
                           Launch launch);

/// d_k and d_v. `dtype`: the plan's.
void launch_key_gradients(const KeyGradients& p, openmsa_dtype dtype, Launch launch);

}  // namespace openmsa::cuda::sm90::training
