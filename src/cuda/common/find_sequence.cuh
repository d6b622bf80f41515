// find_sequence by a whole warp.
#pragma once

#include <cstdint>

#include "cuda/common/math.h"
#include "cuda/common/tensor_view.h"

namespace openmsa::cuda {

/// The last b in [0, count) with offsets[b] <= value, by a warp that looks at 32 offsets at once: a lane's loads depend
/// on each other only twice in a thousand sequences.
template <class Load = Ld>
__device__ __forceinline__ std::int32_t find_sequence_together(IntVector offsets, std::int32_t count,
                                                               std::int32_t value, int lane, Load load = {}) {
  std::int32_t low = 0, span = count;  // it is one of [low, low + span)
  while (span > 1) {
    const std::int32_t step = (span + 31) / 32, probe = lane * step;
    const bool is_before = probe < span && load(offsets, low + probe) <= value;
    const std::int32_t last = 31 - __clz(__ballot_sync(kFullWarp, is_before));
    low += last * step;
    span = min(step, span - last * step);
  }
  return low;
}

}  // namespace openmsa::cuda
