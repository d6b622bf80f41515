// Entry points of the compiled attention kernels.
#pragma once

#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm80/attend/params.h"

namespace openmsa::cuda::sm80::attend {

/// Attention of the first `count` of batches after their schedule.
using ScheduledFunction = void(const PromptBatches& batches, int count, Launch launch);
/// Dense attention of prompts of at most `max_tiles` tiles.
using DenseFunction = void(const PromptParams& p, std::int64_t max_tiles, Launch launch);
/// Attention of decode.
using DecodeFunction = void(const DecodeParams& p, Launch launch);

/// kDtype: of q and o; kCached: of k and v. Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_scheduled(const PromptBatches& batches, int count, Launch launch);
template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_dense(const PromptParams& p, std::int64_t max_tiles, Launch launch);
template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_decode(const DecodeParams& p, Launch launch);

}  // namespace openmsa::cuda::sm80::attend
