// The workspace of a gradient of attention, carved from an Arena: with memory for a run, without for its size.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/plan.h"
#include "cuda/generic/training/batches.h"
#include "cuda/generic/training/params.h"

namespace openmsa::cuda::generic::training {

/// Of a list batch's places, and of the keys of its heads.
struct BackwardWorkspace {
  BackwardWorkspace(core::Arena& arena, const core::Plan& plan, const ListBatches& batches);
  static BatchCosts costs(const core::Plan& plan);

  KeyBounds* bounds;  // KeyInputs::bounds
  RowStats stats;
  std::int32_t* d_q_sums;
  float* d_kv_sums;
};

}  // namespace openmsa::cuda::generic::training
