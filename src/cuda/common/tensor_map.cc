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

CUtensorMap make_tensor_map(const void* data, openmsa_dtype dtype, std::int64_t dim, const std::int64_t (&shape)[3],
                            const std::int64_t (&strides)[3], const std::int32_t (&box)[3]) {
  constexpr cuuint64_t kElementBytes = 2;
  const auto type = dtype == OPENMSA_BFLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  cuuint64_t extents[4] = {static_cast<cuuint64_t>(dim)};
  cuuint64_t bytes[3];
  cuuint32_t boxes[4] = {kSwizzleChannels};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  for (int d = 0; d < 3; ++d) {
    extents[d + 1] = static_cast<cuuint64_t>(std::max<std::int64_t>(shape[d], 1));
    // A dimension of one element is never stepped over; the encoder wants a stride that is a multiple of 16 all the
    // same.
    bytes[d] = shape[d] <= 1 ? 16 : static_cast<cuuint64_t>(strides[d]) * kElementBytes;
    boxes[d + 1] = static_cast<cuuint32_t>(box[d]);
  }
  CUtensorMap map;
  const CUresult result =
      encoder()(&map, type, 4, const_cast<void*>(data), extents, bytes, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    core::fail(OPENMSA_CUDA_ERROR, "cuTensorMapEncodeTiled: error ", static_cast<int>(result), " for shape ", dim,
               " x ", shape[0], " x ", shape[1], " x ", shape[2], ", box 64 x ", box[0], " x ", box[1], " x ", box[2]);
  }
  return map;
}

}  // namespace openmsa::cuda
