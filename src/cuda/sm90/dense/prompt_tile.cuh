// The tiles of a prompt, their order, and how a producer loads them.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>

#include "cuda/common/query_tile.h"
#include "cuda/sm90/dense/params.h"
#include "cuda/sm90/ptx/async_copy.cuh"
#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/pipeline.cuh"

namespace openmsa::cuda::sm90::dense {

inline constexpr int kConsumers = 2;  // warpgroups of 64 rows each

/// A tile of queries with the heads of one KV head, and the key tiles that they see.
struct PromptTile {
  QueryTile queries;
  std::int32_t head;          // KV head; -1: there is no further tile
  std::int32_t first_masked;  // key tiles from here on hold keys that some of the queries do not see
  std::int32_t key_tiles;

  __device__ __forceinline__ bool exists() const { return head >= 0; }
  /// Position of the last query.
  __device__ __forceinline__ std::int32_t last_position() const { return queries.position + queries.count - 1; }
};

__device__ __forceinline__ PromptTile no_tile() {
  PromptTile tile{};
  tile.head = -1;
  return tile;
}

/// Tile `number` of all sequences with a KV head.
__device__ __forceinline__ PromptTile prompt_tile(const PromptParams& p, std::int32_t head, std::int32_t number) {
  PromptTile tile{};
  tile.head = head;
  tile.queries = find_tile(p.batch, p.index, number, p.tile_queries);
  tile.first_masked = max(tile.queries.position + 1, 0) / kPromptKeys;
  tile.key_tiles = (max(tile.last_position() + 1, 0) + kPromptKeys - 1) / kPromptKeys;
  return tile;
}

/// The `number`-th tile to work off: head by head, so that the keys of one stay in the L2 cache; the last queries,
/// which see most keys, first, so that CTAs end with small tiles.
__device__ __forceinline__ PromptTile tile_in_order(const PromptParams& p, std::int32_t number) {
  const std::int32_t tiles = p.index.tiles[p.batch.batch + 1];
  const std::int32_t head = tiles == 0 ? p.heads : number / tiles;
  if (head >= p.heads) return no_tile();
  return prompt_tile(p, head, tiles - 1 - number % tiles);
}

/// The queries of a tile, 64 rows for each consumer; bytes are announced to `full`.
template <class Tile>
__device__ __forceinline__ void load_queries(const PromptParams& p, const CUtensorMap& map_q, const PromptTile& tile,
                                             typename Tile::Element (&q)[kConsumers][kWarpgroupRows * Tile::kDim],
                                             std::uint64_t* full) {
  const std::int32_t per_consumer = p.tile_queries / kConsumers;
  FullBarrier::arrive_and_expect_tx(full, static_cast<std::uint32_t>(sizeof(q)));
  for (int c = 0; c < kConsumers; ++c) {
    for (int h = 0; h < Tile::kHalves; ++h) {
      cute::SM90_TMA_LOAD_4D::copy(&map_q, full, static_cast<std::uint64_t>(CacheHintSm90::EVICT_FIRST),
                                   &q[c][h * kWarpgroupRows * kPanelChannels], h * kPanelChannels,
                                   tile.head << p.log2_group_size, tile.queries.q_row + c * per_consumer, 0);
    }
  }
}

}  // namespace openmsa::cuda::sm90::dense
