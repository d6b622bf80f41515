// How the index branch of a decode step is divided over the blocks of a grid, from the lengths alone.
//
// The queries of a sequence lie in tiles; a tile's work is its key units of 128 keys, as far as they hold a kv_block
// that competes for one of its queries. Put end to end, the key units of all query tiles are `units`; block c of the
// grid takes [c per_block, (c + 1) per_block) of them. A segment is what a block takes of one query tile:
//
//   units     | tile 0               | tile 1 | tile 2                    |
//   blocks    | 0        | 1        | 2        | 3        | 4        | 5  |
//   segments  | 0        | 1    |2  | 3 |4     | ...                           number = block + query tile
//
// Units fit in 32 bits: is_decode() sees to it. Blocks work this out for themselves from seqlens_k: there is no
// schedule that could be stale.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/common/math.h"
#include "cuda/common/selection.h"
#include "cuda/sm90/heuristics.h"

namespace openmsa::cuda::sm90::decode {

/// The work of one sequence.
struct SequenceWork {
  std::int32_t query_tiles;
  std::int32_t key_units;  // of each query tile

  OPENMSA_DEVICE std::int32_t units() const { return query_tiles * key_units; }
};

OPENMSA_DEVICE SequenceWork sequence_work(const SequenceView& view, const SelectionRules& rules,
                                          std::int32_t tile_queries) {
  const std::int32_t tiles = (view.seqlen_q + tile_queries - 1) / tile_queries;
  const Candidates last(rules, view.seqlen_q == 0 ? -1 : view.seqlen_k - 1);
  const bool has_choice = last.slots > 0 && last.slots < last.end - last.init;
  const std::int32_t blocks_per_unit = kUnitKeys >> log2_of(rules.block_size);
  return {tiles, has_choice ? (last.end + blocks_per_unit - 1) / blocks_per_unit : 0};
}

/// Units of every block of the grid, all but the last ones alike.
OPENMSA_DEVICE std::int32_t units_per_block(std::int32_t units, std::int32_t blocks) {
  return units == 0 ? 1 : (units + blocks - 1) / blocks;
}

/// Candidates that each segment leaves for a row.
OPENMSA_DEVICE std::int32_t kept_candidates(std::int32_t per_block, const SelectionRules& rules) {
  const std::int32_t scored = per_block * (kUnitKeys >> log2_of(rules.block_size));
  return scored < rules.topk ? scored : rules.topk;
}

/// The segments of one query tile.
struct SegmentRange {
  std::int32_t first;  // number of its first segment
  std::int32_t count;
};

/// `begin`: the tile's first unit.
OPENMSA_DEVICE SegmentRange segment_range(std::int32_t begin, std::int32_t key_units, std::int32_t per_block,
                                          std::int32_t query_tile) {
  const std::int32_t first = begin / per_block, last = (begin + key_units - 1) / per_block;
  return {first + query_tile, last - first + 1};
}

}  // namespace openmsa::cuda::sm90::decode
