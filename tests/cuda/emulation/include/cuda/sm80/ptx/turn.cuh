// Turns of CTAs, which run one after the other here: whoever has to wait waits for ever.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"

namespace openmsa::cuda::sm80 {

inline void wait_for_turn(const std::int32_t* ended, std::int32_t turn) {
  if (*ended != turn) emulation::fail("a CTA waits for the turn of a later one");
}
inline void end_turn(std::int32_t* ended) { ++*ended; }

}  // namespace openmsa::cuda::sm80
