// Entry points of the compiled kernels of the index branch.
#pragma once

#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm80/select/params.h"

namespace openmsa::cuda::sm80::select {

/// Of prompts with lists of `capacity`, or block scores; max_tiles bounds the number of query tiles.
using PromptFunction = void(const SelectParams& p, int capacity, int max_tiles, Launch launch);
/// Scores of decode.
using DecodeFunction = void(const SelectParams& p, Launch launch);

/// kCached: of index_k. Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kCached, int kDim>
void launch_prompt(const SelectParams& p, int capacity, int max_tiles, Launch launch);
template <openmsa_dtype kCached, int kDim>
void launch_decode(const SelectParams& p, Launch launch);

/// Whether this build has code for the current device.
bool has_code();

void launch_merge(const SelectParams& p, int capacity, Launch launch);
void launch_choose(const SelectParams& p, int max_tiles, Launch launch);

}  // namespace openmsa::cuda::sm80::select
