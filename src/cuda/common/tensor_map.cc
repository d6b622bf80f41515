#include "cuda/common/tensor_map.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "cuda/common/error.h"

namespace openmsa::cuda {
namespace {

/// The driver's encoder, found through the runtime so that nothing links against the driver.
decltype(&cuTensorMapEncodeTiled) encoder() {
  static const auto function = [] {
    void* pointer = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &pointer, 12000, cudaEnableDefault, &result),
          "cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess) {
      core::fail(OPENMSA_UNSUPPORTED, "driver: expected one with cuTensorMapEncodeTiled (CUDA 12), got an older one");
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(pointer);
  }();
  return function;
}

}  // namespace

CUtensorMap make_tensor_map(const void* data, openmsa_dtype dtype, std::int64_t channels,
                            std::initializer_list<MapDimension> dimensions) {
  constexpr int kMaxRank = 5;
  constexpr cuuint64_t kElementBytes = 2;
  const auto type = dtype == OPENMSA_BFLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  cuuint64_t extents[kMaxRank] = {static_cast<cuuint64_t>(channels)};
  cuuint64_t bytes[kMaxRank - 1];
  cuuint32_t boxes[kMaxRank] = {kSwizzleChannels};
  const cuuint32_t steps[kMaxRank] = {1, 1, 1, 1, 1};
  int rank = 1;
  for (const MapDimension& dimension : dimensions) {
    extents[rank] = static_cast<cuuint64_t>(std::max<std::int64_t>(dimension.extent, 1));
    // A dimension of one element is never stepped over; the encoder wants a stride that is a multiple of 16 all the
    // same.
    bytes[rank - 1] = dimension.extent <= 1 ? 16 : static_cast<cuuint64_t>(dimension.stride) * kElementBytes;
    boxes[rank] = static_cast<cuuint32_t>(dimension.box);
    ++rank;
  }
  CUtensorMap map;
  const CUresult result = encoder()(&map, type, static_cast<cuuint32_t>(rank), const_cast<void*>(data), extents, bytes,
                                    boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    core::fail(OPENMSA_CUDA_ERROR, "cuTensorMapEncodeTiled: error ", static_cast<int>(result), " for ", channels,
               " channels and ", rank - 1, " more dimensions, the first of ", extents[1]);
  }
  return map;
}

}  // namespace openmsa::cuda
