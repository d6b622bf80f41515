// topk_indices alone from the scores of the index branch: a CTA per query row and KV head; in a mixture CTAs go
// over those that are served.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm90/decode/choose.cuh"

namespace openmsa::cuda::sm90::decode {

inline constexpr int kChooseWarps = 4;
inline constexpr unsigned int kChooseCtas = 8;  // per SM, for a mixture

__global__ void __launch_bounds__(kChooseWarps * 32) choose_kernel(const __grid_constant__ SelectParams p) {
  __shared__ Chosen<1> chosen;
  __shared__ ChoiceScratch<1, kChooseWarps> scratch;
  if (threadIdx.x == 0) chosen.gathered[0] = 0;
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
    choose_blocks(chosen, scratch, 1, ChoiceTeam(1, kChooseWarps, warp), choice_row(p, part, 0, head), lane);
    if (warp == 0) {
      std::int32_t* const to = p.topk_indices.row(head, part.row);
      store_choice(chosen.blocks[0], chosen.counts[0], p.rules.topk, to, p.topk_indices.strides[2], lane);
    }
    __syncthreads();
  }
}

}  // namespace openmsa::cuda::sm90::decode
