// Against a compiler that computes everything before a loop, keeps it, and runs out of registers.
#pragma once

namespace openmsa::cuda::sm80 {

/// x, a number of 32 bits; what is computed from it is computed here and not before.
template <class Number>
__device__ __forceinline__ Number anew(Number x) {
  asm volatile("" : "+r"(x));
  return x;
}

}  // namespace openmsa::cuda::sm80
