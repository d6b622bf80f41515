// Block recall: what its kernels have in common on every architecture.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/common/device.h"
#include "cuda/common/tensor_view.h"

namespace openmsa::cuda::generic::recall {

/// block_recall or score_recall, [num_heads_kv][total_q].
struct Figure {
  float* data;  // nullptr: not wanted
  std::int64_t strides[2];
};

/// The mass of kv_blocks, for all KV heads and some of the query tiles. Tiles: an architecture's dense attention, with
/// batch, index of tiles of tile_queries, and heads.
template <class Tiles>
struct RecallParams : Tiles {
  std::int32_t first_tile;
  std::int32_t tiles;
  std::int32_t max_blocks;  // kv_blocks of the longest sequence
  float* mass;              // [heads][tiles][tile_queries][max_blocks]
  SelectionView topk_indices;
  std::int32_t topk;
  Figure block_recall;
  Figure score_recall;

  /// Masses of a query of a tile.
  OPENMSA_DEVICE float* mass_row(std::int32_t head, std::int32_t tile, std::int32_t query) const {
    const std::int64_t row = (std::int64_t{head} * tiles + (tile - first_tile)) * this->tile_queries + query;
    return mass + row * max_blocks;
  }
};

/// Query tiles whose masses are in memory at once, of at most max_tiles: 1 GiB of them.
constexpr std::int64_t recall_tiles(std::int64_t tile_bytes, std::int64_t max_tiles) {
  return std::clamp<std::int64_t>((std::int64_t{1} << 30) / tile_bytes, 1, max_tiles);
}

}  // namespace openmsa::cuda::generic::recall
