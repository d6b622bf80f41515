// Entry points of the kernels before and after the tiles of the KL loss.
#pragma once

#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/generic/training/kl/params.h"

namespace openmsa::cuda::generic::training::kl {

/// Before all list batches: p.maxima. `max_blocks`: kv_blocks that the sequences can have together; `dtype`: of index_k.
void launch_maxima(const Params& p, const QueryRows& index_k, std::int64_t max_blocks, openmsa_dtype dtype,
                   Launch launch);

/// p.stats of the batch's rows, from p.partials.
void launch_row_stats(const Params& p, Launch launch);

/// Adds p.item_loss to p.loss.
void launch_sum_loss(const Params& p, Launch launch);

/// d_index_q of the batch's rows. `dtype`: the plan's.
void launch_index_rows(const Params& p, const GradientRows& d_index_q, openmsa_dtype dtype, Launch launch);

/// After all list batches: d_index_k from the sums of `heads` KV heads. `dtype`: the plan's.
void launch_index_keys(const Params& p, const GradientRows& d_index_k, std::int32_t heads, openmsa_dtype dtype,
                       Launch launch);
void launch_write_loss(const Params& p, float* kl_loss, Launch launch);

}  // namespace openmsa::cuda::generic::training::kl
