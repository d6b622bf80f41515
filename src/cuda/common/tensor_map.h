// Tensor maps: how the copy engine (TMA) sees a tensor.
#pragma once

#include <cuda.h>
#include <openmsa/openmsa.h>

#include <cstdint>

namespace openmsa::cuda {

/// Boxes of rows x 64 channels land in shared memory with the 128-byte swizzle: 16-byte chunk c of row r lies at chunk
/// c ^ (r % 8). A tile with more channels is several such halves, one after the other.
inline constexpr int kSwizzleChannels = 64;

/// `data` [shape[2]][shape[1]][shape[0]][dim] of bf16 or fp16 with strides in elements; a box is 64 channels x box[i]
/// of the other dimensions, fastest first.
CUtensorMap make_tensor_map(const void* data, openmsa_dtype dtype, std::int64_t dim, const std::int64_t (&shape)[3],
                            const std::int64_t (&strides)[3], const std::int32_t (&box)[3]);

}  // namespace openmsa::cuda
