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

constexpr cuuint64_t kSwizzleBytes = 128;

/// How much the L2 cache may fetch for a row of a box: as many of its bytes as lie side by side, in memory and in what
/// the box wants. More would be a neighbour's, such as another head's, from memory for nothing.
CUtensorMapL2promotion l2_promotion(std::int64_t row_bytes, std::int64_t element_bytes,
                                    std::initializer_list<MapDimension> dimensions) {
  for (const MapDimension& dimension : dimensions) {
    const bool is_next = dimension.stride * element_bytes == row_bytes && dimension.box > 1;
    if (is_next) row_bytes *= std::max<std::int64_t>(dimension.extent, 1);
  }
  if (row_bytes % 256 == 0) return CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
  if (row_bytes % 128 == 0) return CU_TENSOR_MAP_L2_PROMOTION_L2_128B;
  return row_bytes % 64 == 0 ? CU_TENSOR_MAP_L2_PROMOTION_L2_64B : CU_TENSOR_MAP_L2_PROMOTION_NONE;
}

}  // namespace

CUtensorMap make_tensor_map(const void* data, openmsa_dtype dtype, std::int64_t channels,
                            std::initializer_list<MapDimension> dimensions) {
  constexpr int kMaxRank = 5;
  const auto element_bytes = static_cast<cuuint64_t>(openmsa_dtype_bytes(dtype));
  const std::int64_t row_bytes = channels * static_cast<std::int64_t>(element_bytes);
  const auto box_bytes = std::min(kSwizzleBytes, static_cast<cuuint64_t>(row_bytes));
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
    bytes[rank - 1] = dimension.extent <= 1 ? 16 : static_cast<cuuint64_t>(dimension.stride) * element_bytes;
    boxes[rank] = static_cast<cuuint32_t>(dimension.box);
    ++rank;
  }
  CUtensorMap map;
  const CUresult result = encoder()(&map, element_type(dtype), static_cast<cuuint32_t>(rank), const_cast<void*>(data),
                                    extents, bytes, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                    l2_promotion(row_bytes, static_cast<std::int64_t>(element_bytes), dimensions),
                                    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    core::fail(OPENMSA_CUDA_ERROR, "cuTensorMapEncodeTiled: error ", static_cast<int>(result), " for ", channels,
               " channels and ", rank - 1, " more dimensions, the first of ", extents[1]);
  }
  return map;
}

}  // namespace openmsa::cuda
