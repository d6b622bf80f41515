// Entry points of the kernels that merge what shards have given.
#pragma once

#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/generic/shards/params.h"

namespace openmsa::cuda::generic {

void launch_merge_candidates(const MergeCandidatesParams& p, Launch launch);

/// The parts are of dtype `part`, o of `result`; each bf16, fp16 or fp32.
void launch_merge_partials(const MergePartialsParams& p, openmsa_dtype part, openmsa_dtype result, Launch launch);

}  // namespace openmsa::cuda::generic
