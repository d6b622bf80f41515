// Keys of a call as the portable kernels take them.
#pragma once

#include "core/problem.h"
#include "cuda/common/call.h"
#include "cuda/sm80/tile/keys.h"

namespace openmsa::cuda::sm80 {

/// Contiguous keys or those of a cache, whichever the plan has. has_heads: k and v, not index_k.
inline KeyTensor key_tensor(const core::Problem& problem, const openmsa_tensor& contiguous, const openmsa_tensor& paged,
                            bool has_heads) {
  const bool is_paged = problem.plan.is_paged();
  const openmsa_tensor& tensor = is_paged ? paged : contiguous;
  const auto bytes = static_cast<std::int64_t>(openmsa_dtype_bytes(tensor.dtype));
  const int token = is_paged ? 1 : 0;
  return {static_cast<const char*>(tensor.data), is_paged ? tensor.strides[0] * bytes : 0,
          tensor.strides[token] * bytes, has_heads ? tensor.strides[token + 1] * bytes : 0};
}

/// Tiles of `queries` that the sequences of a batch and the padding after them can have.
inline std::int64_t max_tiles(std::int64_t total_q, std::int64_t batch, std::int64_t queries) {
  return core::ceil_div(total_q, queries) + batch + 1;
}

}  // namespace openmsa::cuda::sm80
