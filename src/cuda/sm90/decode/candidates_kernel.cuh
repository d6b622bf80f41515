// candidates from the scores of the index branch: a CTA per query row and KV head; in a mixture CTAs go over those that
// are served.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/generic/topk/write_candidates.cuh"
#include "cuda/sm90/decode/choose_kernel.cuh"

namespace openmsa::cuda::sm90::decode {

__global__ void __launch_bounds__(kChooseWarps * 32) candidates_kernel(const __grid_constant__ SelectParams p) {
  __shared__ int gathered[1];
  __shared__ ScoreBins<1> bins;
  __shared__ ChoiceScratch<1> scratch;
  empty_choice<kChooseWarps * 32>(gathered, bins, threadIdx.x);
  __syncthreads();
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool is_mixture = !p.served.is_open();
  for (auto number = static_cast<std::int32_t>(blockIdx.x); is_mixture || number < p.batch.total_q * p.heads;
       number += gridDim.x) {
    const std::int32_t at = number / p.heads, head = number % p.heads;
    const QueryPart part = is_mixture ? find_group(p, at, lane) : find_part(p, at, at + 1, lane);
    if (part.count == 0) break;
    const ChoiceTeam team(1, kChooseWarps, warp);
    const ScoreRow row = score_row(p, part, 0, head);
    const generic::CandidateRow out{p.candidates.row(head, part.row), p.candidates.strides[2], p.rules.topk,
                                    p.rules.shard};
    list_best<kShortShare>(gathered, bins, scratch, 1, team, row, ScoreShare(row, team, lane),
                           row.rules.need_scores(true), lane, [&](int, const Ranked* entries, int size) {
                             generic::put_best(out, entries, size, row.rules.slots, lane);
                             if (lane == 0) gathered[0] = 0;
                           });
  }
}

}  // namespace openmsa::cuda::sm90::decode
