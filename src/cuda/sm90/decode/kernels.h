// Entry points of the compiled kernels of a decode step: plain functions, so that host code needs no CUTLASS.
#pragma once

#include <cuda.h>
#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm90/decode/params.h"

namespace openmsa::cuda::sm90::decode {

/// Scores of the index branch.
using SelectFunction = void(const SelectParams& p, const CUtensorMap& index_k, Launch launch);

/// p.index.
void launch_index(const SelectParams& p, Launch launch);

/// topk_indices or, where these are wanted, rows of `candidates` from the scores.
void launch_choose(const SelectParams& p, Launch launch);

/// Attention, over the kv_blocks chosen from the scores or those of topk_indices.
using AttendFunction = void(const AttendParams& p, const CUtensorMap& k, const CUtensorMap& v, Launch launch);

/// kDtype: of index_q or q; kCached: of index_k, or of k and v. Compiled by instantiate.cu.in for the rows of
/// variants.h.
template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_select(const SelectParams& p, const CUtensorMap& index_k, Launch launch);
template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_attend(const AttendParams& p, const CUtensorMap& k, const CUtensorMap& v, Launch launch);

}  // namespace openmsa::cuda::sm90::decode
