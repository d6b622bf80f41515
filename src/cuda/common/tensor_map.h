// Tensor maps: how the copy engine (TMA) sees a tensor.
#pragma once

#include <cuda.h>
#include <openmsa/openmsa.h>

#include <cstdint>
#include <initializer_list>

namespace openmsa::cuda {

/// Boxes of rows x 64 channels of 16 bits land in shared memory with the 128-byte swizzle: 16-byte chunk c of row r
/// lies at chunk c ^ (r % 8). A tile with more channels is several such halves, one after the other. 64 channels of 8
/// bits have the 64-byte swizzle: chunk c ^ (r / 2 % 4).
inline constexpr int kSwizzleChannels = 64;

/// A dimension of a tensor map outside the channels.
struct MapDimension {
  std::int64_t extent;
  std::int64_t stride;  // in elements
  std::int32_t box;
};

/// bf16, fp16 or e4m3 `data` with `channels` side by side and up to four more dimensions, fastest first; a box is at
/// most 128 bytes of channels times the boxes of the others.
CUtensorMap make_tensor_map(const void* data, openmsa_dtype dtype, std::int64_t channels,
                            std::initializer_list<MapDimension> dimensions);

}  // namespace openmsa::cuda
