// Where a tile of queries lies in a batch of sequences.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"

namespace openmsa::cuda {

/// Prefix sums over sequences, made on the device by generic::index_batch.
struct BatchIndex {
  std::int32_t* tiles;   // [batch + 2] first tile of each sequence (the padding rows come last), total number of tiles
  std::int32_t* blocks;  // [batch + 1] first kv_block of each sequence among all, total
};

/// A tile of queries of one sequence.
struct QueryTile {
  std::int32_t sequence;
  std::int32_t q_row;     // row of its first query
  std::int32_t count;     // queries
  std::int32_t position;  // of its first query; may be negative
  SequenceView view;
};

OPENMSA_DEVICE QueryTile find_tile(const BatchView& batch, const BatchIndex& index, std::int32_t tile,
                                   std::int32_t queries_per_tile) {
  QueryTile result;
  result.sequence = find_sequence({index.tiles, 1}, batch.batch + 1, tile);
  result.view = batch.sequence(result.sequence);
  const std::int32_t first = (tile - index.tiles[result.sequence]) * queries_per_tile;
  const std::int32_t rest = result.view.seqlen_q - first;
  result.q_row = result.view.q_row + first;
  result.count = rest < queries_per_tile ? rest : queries_per_tile;
  result.position =
      result.sequence == batch.batch ? -queries_per_tile : result.view.seqlen_k - result.view.seqlen_q + first;
  return result;
}

}  // namespace openmsa::cuda
