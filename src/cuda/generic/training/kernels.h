// Entry points of the kernels before and after those that multiply tiles.
#pragma once

#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/generic/training/params.h"

namespace openmsa::cuda::generic::training {

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

}  // namespace openmsa::cuda::generic::training
