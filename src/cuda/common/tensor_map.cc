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

CUtensorMapDataType element_type(openmsa_dtype dtype) {
  switch (dtype) {
    case OPENMSA_BFLOAT16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case OPENMSA_FLOAT16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
}

constexpr std::int64_t kSwizzleBytes = 128;

/// How much the L2 cache may fetch at a time: a row of a box, which is what the box wants and lies side by side. With 256
/// bytes rows of 256 bytes, which are two boxes, arrive 12 % more slowly, and those of 128 bytes bring a neighbour's,
/// such as another head's, from memory for nothing.
CUtensorMapL2promotion l2_promotion(std::int64_t box_bytes) {
  return box_bytes == kSwizzleBytes ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B : CU_TENSOR_MAP_L2_PROMOTION_L2_64B;
}

}  // namespace

CUtensorMap make_tensor_map(const void* data, openmsa_dtype dtype, std::int64_t channels,
                            std::initializer_list<MapDimension> dimensions) {
  constexpr int kMaxRank = 5;
  const auto element_bytes = static_cast<std::int64_t>(openmsa_dtype_bytes(dtype));
  const std::int64_t box_bytes = std::min(kSwizzleBytes, channels * element_bytes);
  const auto swizzle = box_bytes == kSwizzleBytes ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  cuuint64_t extents[kMaxRank] = {static_cast<cuuint64_t>(channels)};
  cuuint64_t bytes[kMaxRank - 1];
  cuuint32_t boxes[kMaxRank] = {static_cast<cuuint32_t>(box_bytes / element_bytes)};
  const cuuint32_t steps[kMaxRank] = {1, 1, 1, 1, 1};
  int rank = 1;
  for (const MapDimension& dimension : dimensions) {
    extents[rank] = static_cast<cuuint64_t>(std::max<std::int64_t>(dimension.extent, 1));
    // A dimension of one element is never stepped over; the encoder wants a stride that is a multiple of 16 all the
    // same.
    bytes[rank - 1] = dimension.extent <= 1 ? 16 : static_cast<cuuint64_t>(dimension.stride * element_bytes);
    boxes[rank] = static_cast<cuuint32_t>(dimension.box);
    ++rank;
  }
  CUtensorMap map;
  const CUresult result = encoder()(&map, element_type(dtype), static_cast<cuuint32_t>(rank), const_cast<void*>(data),
                                    extents, bytes, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                    l2_promotion(box_bytes), CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    core::fail(OPENMSA_CUDA_ERROR, "cuTensorMapEncodeTiled: error ", static_cast<int>(result), " for ", channels,
               " channels and ", rank - 1, " more dimensions, the first of ", extents[1]);
  }
  return map;
}

}  // namespace openmsa::cuda
