// The scores that a decode step's index branch left for a query row (generic/topk/choose.cuh).
#pragma once

#include "cuda/generic/topk/choose.cuh"
#include "cuda/sm90/decode/tile_scheduler.cuh"

namespace openmsa::cuda::sm90::decode {

using generic::ChoiceScratch;
using generic::ChoiceTeam;
using generic::choose_blocks;
using generic::Chosen;
using generic::kMaxTopk;
using generic::ScoreRow;
using generic::store_choice;

/// Query `at` of a part.
__device__ __forceinline__ ScoreRow choice_row(const SelectParams& p, const QueryPart& part, std::int32_t at,
                                               std::int32_t head) {
  const std::int32_t query = part.row - part.view.q_row + at;
  return {Candidates(p.rules, part.position + at), p.scores.row(part.sequence, part.view, query, head, p.heads)};
}

}  // namespace openmsa::cuda::sm90::decode
