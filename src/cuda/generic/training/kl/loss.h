// The KL loss of a call, step by step: whoever calls it makes the lists, and may know the teacher already.
#pragma once

#include "core/problem.h"
#include "cuda/common/launch.h"
#include "cuda/generic/training/kl/workspace.h"
#include "cuda/generic/training/tile_kernels.h"

namespace openmsa::cuda::generic::training::kl {

class Loss {
 public:
  Loss(const core::Problem& problem, const LossWorkspace& workspace, const TileKernels& kernels, Launch launch);

  /// Before all batches, of which each has `heads` KV heads at most.
  void prepare(const generic::ListParams& lists, std::int32_t heads);
  /// A batch, whose lists are there.
  void begin_batch(const generic::ListParams& lists);
  /// Writes teacher(), or somebody else does.
  void run_teacher() const;
  const TeacherRows& teacher() const { return params_.teacher; }
  /// From teacher(): the batch's share of the loss and of d_index_k, and its d_index_q. Its tickets are zero before.
  void run_student() const;
  /// After all batches: kl_loss and d_index_k.
  void finish(std::int32_t heads) const;

 private:
  const core::Problem& problem_;
  const openmsa_config& config_;
  const TileKernels& kernels_;
  const Launch launch_;
  Params params_;
};

}  // namespace openmsa::cuda::generic::training::kl
