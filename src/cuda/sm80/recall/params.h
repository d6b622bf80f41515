// Block recall: parameters of its kernels.
#pragma once

#include "cuda/common/query_tile.h"
#include "cuda/generic/recall/params.h"
#include "cuda/sm80/tile/keys.h"

namespace openmsa::cuda::sm80::recall {

/// Tiles of queries over all their keys, 16 (query, head) rows for each of 8 warps.
struct DenseTiles {
  BatchView batch;
  BatchIndex index;           // of tiles of tile_queries
  std::int32_t tile_queries;  // kRows / group_size
  std::int32_t heads;         // KV heads
  std::int32_t log2_group_size;
  QueryRows q;
  KeyTensor k;
  float scale_log2;  // softmax_scale * log2(e)
};
inline constexpr int kWarps = 8, kRows = 16 * kWarps;

using RecallParams = generic::recall::RecallParams<DenseTiles>;

}  // namespace openmsa::cuda::sm80::recall
