// A candidate of the selection as one number.
#pragma once

#include <climits>

namespace openmsa::cuda {

/// Score and kv_block: higher scores are greater, and so is the lower of two kv_blocks with equal scores
/// (topk_key.cuh).
using Ranked = long long;
inline constexpr Ranked kNoCandidate = LLONG_MIN;

}  // namespace openmsa::cuda
