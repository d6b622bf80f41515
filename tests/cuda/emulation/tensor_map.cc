// Tensor maps are Hopper's.
#include "cuda/common/tensor_map.h"

#include "core/error.h"

namespace openmsa::cuda {

CUtensorMap make_tensor_map(const void*, openmsa_dtype, std::int64_t, std::initializer_list<MapDimension>) {
  core::fail(OPENMSA_INTERNAL, "the emulation has no tensor maps");
}

}  // namespace openmsa::cuda
