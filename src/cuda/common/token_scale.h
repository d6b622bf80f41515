// Scales of fp8 caches as kernels see them.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"

namespace openmsa::cuda {

/// A number per token: absent, the same for all, or one each.
struct TokenScale {
  const float* data;  // nullptr: 1
  std::int64_t head_stride;
  std::int64_t token_stride;  // physical tokens; 0: one for all
  OPENMSA_DEVICE bool is_per_token() const { return token_stride != 0; }
  OPENMSA_DEVICE bool is_for_all() const { return data != nullptr && token_stride == 0; }
};

}  // namespace openmsa::cuda
