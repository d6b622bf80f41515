// Entry points of the schedule's kernels.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/generic/schedule/params.h"

namespace openmsa::cuda::generic {

/// index.tiles and index.blocks for tiles of `queries_per_tile`.
void index_batch(const BatchView& batch, const BatchIndex& index, int queries_per_tile, Launch launch);

/// Schedules of p.work and the schedule batches after it, `batches` in all.
void schedule(const ScheduleParams& p, int batches, Launch launch);

}  // namespace openmsa::cuda::generic
