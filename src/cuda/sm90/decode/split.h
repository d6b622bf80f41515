// How the index branch of a decode step is divided over the CTAs of a grid, from the lengths alone.
//
// The queries of a sequence lie in tiles; a tile's work is its key units of 128 keys, as far as they hold a kv_block
// that competes for one of its queries; of a shard, those of its own keys. Put end to end, the key units of all query tiles are `units`; CTA c of the
// grid takes [c per_cta, (c + 1) per_cta) of them. A segment is what a CTA takes of one query tile:
//
//   units     | tile 0               | tile 1 | tile 2                    |
//   CTAs      | 0        | 1        | 2        | 3        | 4        | 5  |
//   segments  |          |      |   |   |      |          |          |    |
//
// Units fit in 32 bits: select_route() sees to it. CTAs work this out for themselves from seqlens_k: there is no
// schedule that could be stale.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/common/math.h"
#include "cuda/common/query_range.h"
#include "cuda/common/selection.h"
#include "cuda/sm90/heuristics.h"

namespace openmsa::cuda::sm90::decode {

/// The work of one sequence.
struct SequenceWork {
  std::int32_t query_tiles;
  std::int32_t key_units;  // of each query tile

  OPENMSA_DEVICE std::int32_t units() const { return query_tiles * key_units; }
};

OPENMSA_DEVICE SequenceWork sequence_work(const SequenceView& view, QueryRange served, const SelectionRules& rules,
                                          std::int32_t tile_queries) {
  if (!served.has(view.seqlen_q)) return {0, 0};
  const std::int32_t tiles = (view.seqlen_q + tile_queries - 1) / tile_queries;
  const Candidates last = Candidates(rules, view.seqlen_q == 0 ? -1 : view.seqlen_k - 1).of_shard(rules.shard);
  const std::int32_t blocks_per_unit = kUnitKeys >> log2_of(rules.block_size);
  return {tiles, last.need_scores(rules.wants_scores) ? (last.end + blocks_per_unit - 1) / blocks_per_unit : 0};
}

/// Groups of up to `group_queries` query rows of a sequence that is served.
OPENMSA_DEVICE std::int32_t query_groups(const SequenceView& view, QueryRange served, std::int32_t group_queries) {
  return served.has(view.seqlen_q) ? (view.seqlen_q + group_queries - 1) / group_queries : 0;
}

/// Units of every CTA of the grid, all but the last ones alike.
OPENMSA_DEVICE std::int32_t units_per_cta(std::int32_t units, std::int32_t ctas) {
  return units == 0 ? 1 : (units + ctas - 1) / ctas;
}

}  // namespace openmsa::cuda::sm90::decode
