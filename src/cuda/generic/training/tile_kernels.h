// What an architecture gives to training.
#pragma once

#include "core/problem.h"
#include "cuda/common/launch.h"
#include "cuda/generic/training/kl/params.h"

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

}  // namespace openmsa::cuda::generic::training
