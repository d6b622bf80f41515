// The workspace of the KL loss, carved from an Arena: with memory for a run, without for its size.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/plan.h"
#include "cuda/generic/training/batches.h"
#include "cuda/generic/training/kl/params.h"

namespace openmsa::cuda::generic::training::kl {

/// Of a list batch's places and items, and of the keys of its heads.
struct LossWorkspace {
  LossWorkspace(core::Arena& arena, const core::Plan& plan, bool is_dense, const ListBatches& batches);
  static BatchCosts costs(const core::Plan& plan, bool is_dense);

  Params params;  // what lies in the workspace
};

}  // namespace openmsa::cuda::generic::training::kl
