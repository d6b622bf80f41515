// Rows of 16-bit elements in global memory, and a warp's fragments of them: 16 bytes per access, exchanged inside quads.
#pragma once

#include "cuda/sm80/tile/quad.cuh"

namespace openmsa::cuda::sm80 {

/// a[.][half], a[.][2 + half] (ptx/matrix.cuh) of this thread's row `half`; all lanes call it.
template <int kDim>
__device__ __forceinline__ void load_row(const void* row, int half, std::uint32_t (&a)[kDim / 16][4], int lane) {
  const auto* const chunks = static_cast<const uint4*>(row);
  uint4 loaded[kDim / 32];
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i) loaded[i] = chunks[i * 4 + lane % 4];
#pragma unroll
  for (int i = 0; i < kDim / 32; ++i) {
    std::uint32_t words[4] = {loaded[i].x, loaded[i].y, loaded[i].z, loaded[i].w};
    transpose_quad(words, lane);
    a[2 * i][half] = words[0];
    a[2 * i][2 + half] = words[1];
    a[2 * i + 1][half] = words[2];
    a[2 * i + 1][2 + half] = words[3];
  }
}

}  // namespace openmsa::cuda::sm80
