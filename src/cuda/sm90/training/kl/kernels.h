// Entry points of the compiled KL kernels: plain functions, so that host code needs no CUTLASS.
#pragma once

#include <cuda.h>
#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm90/training/kl/params.h"

namespace openmsa::cuda::sm90::training::kl {

/// p.teacher of p.work's visits. Maps: boxes of one query, and of 128 keys of one head.
using TeacherFunction = void(const Params& p, const CUtensorMap& q, const CUtensorMap& k, Launch launch);
/// A kernel over p.work's items and index_k, boxes of 128 keys.
using IndexKeysFunction = void(const Params& p, const CUtensorMap& index_k, Launch launch);

/// Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kDtype, int kDim>
void launch_teacher(const Params& p, const CUtensorMap& q, const CUtensorMap& k, Launch launch);
/// Writes p.partials.
template <openmsa_dtype kDtype, int kIndexDim>
void launch_index_lse(const Params& p, const CUtensorMap& index_k, Launch launch);
/// From p.teacher: p.item_loss, and adds to p.d_index_q_sums and p.d_index_k_sums.
template <openmsa_dtype kDtype, int kIndexDim>
void launch_kl(const Params& p, const CUtensorMap& index_k, Launch launch);

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

}  // namespace openmsa::cuda::sm90::training::kl
