// Entry points of the schedule's kernels.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/common/query_range.h"
#include "cuda/generic/schedule/params.h"

namespace openmsa::cuda::generic {

/// index.tiles and index.blocks for tiles of `queries_per_tile`.
void index_batch(const BatchView& batch, const BatchIndex& index, int queries_per_tile, Launch launch);

/// The same where only sequences in `served` have tiles and kv_blocks; and the kv_blocks of the longest of them.
void index_served(const BatchView& batch, const BatchIndex& index, int queries_per_tile, QueryRange served,
                  std::int32_t* longest, Launch launch);

/// Makes the list counters of p.work and of the schedule batches after it, `batches` in all, zero, as far as the
/// kv_blocks of the call reach.
void clear_lists(const ScheduleParams& p, int batches, Launch launch);

/// Schedules of p.work and the schedule batches after it, `batches` in all.
void schedule(const ScheduleParams& p, int batches, Launch launch);

}  // namespace openmsa::cuda::generic
