// The workspace of a call on the CUDA backend, carved from an Arena: with memory for a run, without for its size.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "core/plan.h"
#include "cuda/common/batch_view.h"
#include "cuda/sm90/launches.h"

namespace openmsa::cuda {

/// Tiles of `queries` that the sequences of a batch and the padding behind them can have.
inline std::int64_t max_tiles(std::int64_t total_q, std::int64_t batch, std::int64_t queries) {
  return core::ceil_div(total_q, queries) + batch + 1;
}

inline BatchIndex take_index(core::Arena& arena, const core::Plan& plan) {
  return {arena.take<std::int32_t>(plan.config.max_batch + 2), arena.take<std::int32_t>(plan.config.max_batch + 1)};
}

struct SelectWorkspace {
  SelectWorkspace(core::Arena& arena, const core::Plan& plan, int capacity);

  int capacity;
  int queries_per_tile;
  int num_splits;
  BatchIndex index;
  std::int32_t* partial_keys;  // [max_total_q * heads][num_splits][capacity]; none with one split
  std::int32_t* partial_blocks;
};

struct PrefillWorkspace {
  PrefillWorkspace(core::Arena& arena, const core::Plan& plan);

  BatchIndex index;
  sm90::Chunk chunk;  // the first of those that are scheduled together
  int scheduled;      // how many
};

}  // namespace openmsa::cuda
