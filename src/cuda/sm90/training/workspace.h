// The workspace of a gradient of attention, carved from an Arena: with memory for a run, without for its size.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/plan.h"
#include "cuda/generic/lists/params.h"
#include "cuda/sm90/training/params.h"

namespace openmsa::cuda::sm90::training {

struct BackwardWorkspace {
  BackwardWorkspace(core::Arena& arena, const core::Plan& plan, bool is_dense);

  std::int32_t heads;     // KV heads of a list batch
  std::int32_t max_rows;  // query rows of a list batch
  std::int64_t words;     // of lists.bits
  generic::ListParams lists;
  KeyBounds* bounds;  // [max_batch][num_heads_kv]
  RowStats stats;
  std::int32_t* d_q_sums;
  float* d_kv_sums;
};

}  // namespace openmsa::cuda::sm90::training
