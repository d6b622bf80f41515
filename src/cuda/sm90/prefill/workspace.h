// The workspace of a prefill, carved from an Arena: with memory for a run, without for its size.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/plan.h"
#include "cuda/common/query_tile.h"
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
  int num_splits;
  BatchIndex index;
  std::int32_t* partial_keys;  // [max_total_q * heads][num_splits][capacity]; none with one split
  std::int32_t* partial_blocks;
};

struct AttendWorkspace {
  AttendWorkspace(core::Arena& arena, const core::Plan& plan);

  BatchIndex index;
  generic::ScheduleBatch work;  // the first of those that are scheduled together
  int scheduled;                // how many
};

}  // namespace openmsa::cuda::sm90::prefill
