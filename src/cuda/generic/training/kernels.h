// Entry points of the kernels of training.
#pragma once

#include <openmsa/openmsa.h>

#include "core/problem.h"
#include "cuda/common/launch.h"
#include "cuda/generic/training/kl/params.h"
#include "cuda/generic/training/params.h"

namespace openmsa::cuda::generic::training {

/// Tiles of the work, which each architecture multiplies in its own way.
struct TileKernels {
  /// Adds the gradients of p.work's items to p.d_q_sums and p.d_kv_sums; writes p.teacher where that is wanted.
  void (*backward)(const core::Problem& problem, const BackwardParams& p, Launch launch);
  bool gives_teacher;  // whether `backward` can

  /// p.teacher of p.work's visits.
  void (*teacher)(const core::Problem& problem, const kl::Params& p, Launch launch);
  /// Writes p.partials.
  void (*index_lse)(const core::Problem& problem, const kl::Params& p, Launch launch);
  /// From p.teacher: p.item_loss, and adds to p.d_index_q_sums and p.d_index_k_sums.
  void (*kl)(const core::Problem& problem, const kl::Params& p, Launch launch);
};

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
