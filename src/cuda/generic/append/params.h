// New tokens into paged caches: parameters of the kernel.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"

namespace openmsa::cuda::generic {

enum class AppendMode {
  kCopy,
  kRound,          // to e4m3: x
  kRoundByScale,   // x / scale, which is read
  kScalePerToken,  // x * (448 / amax), and the token's scale amax / 448 is written
  kScalePerBlock,  // x / scale of its kv_block, which follows from the first token: new too, or the scale is read
};

/// One of k, v and index_k.
struct AppendTensor {
  const void* from;  // [total][heads][dim]
  std::int64_t row_stride;
  std::int64_t head_stride;
  void* cache;  // [num_pages][page_size][heads][dim]
  std::int64_t page_stride;
  std::int64_t token_stride;
  std::int64_t cache_head_stride;
  float* scale;  // [1], [heads][num_pages * page_size], or per kv_block [num_pages]
  std::int64_t scale_head_stride;
  std::int64_t scale_token_stride;  // per kv_block from page to page
  std::int32_t heads;               // 0: nothing to append
  std::int32_t dim;
  AppendMode mode;
};

struct AppendParams {
  BatchView batch;
  AppendTensor tensors[3];
};

}  // namespace openmsa::cuda::generic
