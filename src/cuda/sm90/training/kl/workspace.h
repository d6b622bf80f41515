// The workspace of the KL loss, carved from an Arena: with memory for a run, without for its size.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/plan.h"
#include "cuda/generic/lists/params.h"
#include "cuda/sm90/training/kl/params.h"

namespace openmsa::cuda::sm90::training::kl {

struct Workspace {
  Workspace(core::Arena& arena, const core::Plan& plan, bool is_dense);

  std::int32_t heads;     // KV heads of a list batch
  std::int32_t max_rows;  // query rows of a list batch
  std::int64_t words;     // of lists.bits
  generic::ListParams lists;
  Params params;  // what lies in the workspace; slots
};

}  // namespace openmsa::cuda::sm90::training::kl
