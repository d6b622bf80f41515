// topk_indices alone from the scores of the index branch: a CTA per query row and KV head; in a mixture CTAs go
// over those that are served.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm90/decode/choose.cuh"

namespace openmsa::cuda::sm90::decode {

inline constexpr int kChooseWarps = 8;
inline constexpr unsigned int kChooseCtas = 8;  // per SM, for a mixture

__global__ void __launch_bounds__(kChooseWarps * 32) choose_kernel(const __grid_constant__ SelectParams p) {
  __shared__ Chosen<1> chosen;
  __shared__ ScoreBins<1> bins;
  __shared__ ChoiceScratch<1> scratch;
  empty_choice<kChooseWarps * 32>(chosen.gathered, bins, threadIdx.x);
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
    choose_blocks(chosen, bins, scratch, 1, team, row, ScoreShare(row, team, lane), row.rules.end, lane);
    if (warp == 0) {
      std::int32_t* const to = p.topk_indices.row(head, part.row);
      store_choice(chosen.blocks[0], chosen.counts[0], p.rules.topk, to, p.topk_indices.strides[2], lane);
    }
    __syncthreads();
  }
}

}  // namespace openmsa::cuda::sm90::decode
