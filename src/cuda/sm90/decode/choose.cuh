// The candidates that the segments of a decode step's index branch left for a query row (generic/topk/choose.cuh).
#pragma once

#include "cuda/generic/topk/choose.cuh"
#include "cuda/sm90/decode/tile_scheduler.cuh"

namespace openmsa::cuda::sm90::decode {

using generic::ChoiceRow;
using generic::ChoiceScratch;
using generic::ChoiceTeam;
using generic::choose_blocks;
using generic::Chosen;
using generic::kMaxTopk;
using generic::store_choice;

/// Query `at` of a part.
__device__ __forceinline__ ChoiceRow choice_row(const SelectParams& p, const QueryPart& part, std::int32_t at,
                                                std::int32_t head) {
  ChoiceRow row(Candidates(p.rules, part.position + at).of_shard(p.rules.shard));
  if (part.work.key_units == 0 || !row.rules.need_scores(p.rules.wants_scores)) return row;
  const std::int32_t query = part.row - part.view.q_row + at;
  const std::int32_t kept = kept_candidates(part.per_cta, p.rules);
  const SegmentRange range = part.segments(p, query);
  row.choose_from(p.lists.row(range, query % p.tile_queries * p.heads + head, kept), range.count, kept);
  return row;
}

}  // namespace openmsa::cuda::sm90::decode
