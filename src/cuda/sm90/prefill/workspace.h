// The workspace of a prefill, carved from an Arena: with memory for a run, without for its size.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/plan.h"
#include "cuda/common/query_tile.h"
#include "cuda/common/topk_key.h"
#include "cuda/generic/schedule/params.h"

namespace openmsa::cuda::sm90::prefill {

inline constexpr int kNoList = 0;  // capacity of the kernels that write block_scores

/// Longest topk of the smallest compiled lists that hold the plan's.
int list_capacity(const core::Plan& plan);

/// Tiles of `queries` that the sequences of a batch and the padding after them can have.
std::int64_t max_tiles(std::int64_t total_q, std::int64_t batch, std::int64_t queries);

struct SelectWorkspace {
  SelectWorkspace(core::Arena& arena, const core::Plan& plan, int capacity);

  int capacity;
  int queries_per_tile;
  int most_splits;  // of any call
  BatchIndex index;
  std::int32_t* longest;
  Ranked* partial_lists;  // none where most_splits is 1
};

struct AttendWorkspace {
  AttendWorkspace(core::Arena& arena, const core::Plan& plan);

  BatchIndex index;
  generic::ScheduleBatch work;  // the first of those that are scheduled together; most_passes are for a call to say
  int scheduled;                // how many
  std::int64_t partial_tiles;   // whose partial results have room
};

}  // namespace openmsa::cuda::sm90::prefill
