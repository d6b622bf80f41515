// Turns of CTAs at a place in memory, by a counter beside it (PTX ISA, "Parallel Synchronization and Communication
// Instructions": ld.acquire, red.release).
#pragma once

#include <cstdint>

namespace openmsa::cuda::sm80 {

/// Waits until `turn` turns have ended; what they wrote is then seen.
__device__ __forceinline__ void wait_for_turn(const std::int32_t* ended, std::int32_t turn) {
  std::int32_t now;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(now) : "l"(ended) : "memory");
  } while (now != turn);
}

__device__ __forceinline__ void end_turn(std::int32_t* ended) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;\n" ::"l"(ended) : "memory");
}

}  // namespace openmsa::cuda::sm80
