// Approximate functions of the special function units (PTX ISA, "Floating Point Instructions": ex2, lg2). Relative
// error about 2^-22; subnormal numbers count as 0.
#pragma once

namespace openmsa::cuda::sm80 {

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace openmsa::cuda::sm80
