// How a training call is cut into list batches (generic/lists/params.h): some query rows and KV heads at a time, as many
// as the workspace holds.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "core/plan.h"
#include "core/problem.h"
#include "cuda/common/launch.h"
#include "cuda/generic/lists/workspace.h"
#include "cuda/generic/training/heuristics.h"

namespace openmsa::cuda::generic::training {

/// What the kernels keep of a batch beside its lists.
struct BatchCosts {
  std::int64_t key_bytes;     // of a key of the call and a KV head
  std::int64_t place_bytes;   // of a query row and KV head
  std::int64_t least_places;  // (row, KV head) places that a batch takes even where keys alone need the workspace
};

/// List batches of a plan's calls: their size, and the memory of their lists.
struct ListBatches {
  ListBatches(core::Arena& arena, const core::Plan& plan, bool is_dense, const BatchCosts& costs);

  std::int64_t places() const { return std::int64_t{max_rows} * heads; }

  std::int32_t heads;     // KV heads
  std::int32_t max_rows;  // query rows
  std::int64_t items;     // of a batch, at most
  std::int64_t words;     // of lists.bits
  generic::ListParams lists;
};

/// The lists of a call, before its first batch: over its selection or, where that is absent, over everything.
generic::ListParams begin_lists(const core::Problem& problem, const ListBatches& batches, Launch launch);

/// Runs the call's batches: all rows of some KV heads, then the next ones. `lists` says which; begin() comes before the
/// rows of these heads, run() for each batch, end() after them.
template <class Begin, class Run, class End>
void for_each_batch(const core::Problem& problem, const ListBatches& batches, generic::ListParams& lists,
                    const Begin& begin, const Run& run, const End& end) {
  const std::int32_t all_heads = problem.plan.config.num_heads_kv;
  const auto total_q = static_cast<std::int32_t>(problem.total_q);
  const auto rows = static_cast<std::int32_t>(list_batch_rows(total_q, batches.max_rows));
  for (std::int32_t head = 0; head < all_heads; head += batches.heads) {
    lists.first_head = head;
    lists.heads = std::min(batches.heads, all_heads - head);
    begin();
    for (std::int32_t row = 0; row < total_q; row += rows) {
      lists.first_row = row;
      lists.rows = std::min(rows, total_q - row);
      run();
    }
    end();
  }
}

}  // namespace openmsa::cuda::generic::training
