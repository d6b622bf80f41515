// topk_indices alone from the candidates of the index branch: a CTA per query row and KV head; in a mixture CTAs go
// over those that are served.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm90/decode/choose.cuh"

namespace openmsa::cuda::sm90::decode {

inline constexpr int kChooseWarps = 4;
inline constexpr unsigned int kChooseCtas = 8;  // per SM, for a mixture

/// work(row, head, choice) on the query rows and KV heads of a CTA of the two kernels that end an index branch alone, by
/// all its threads: row `row` of the call and its candidates.
template <class Work>
__device__ __forceinline__ void for_each_choice(const SelectParams& p, int lane, Work work) {
  const bool is_mixture = !p.served.is_open();
  for (auto number = static_cast<std::int32_t>(blockIdx.x); is_mixture || number < p.batch.total_q * p.heads;
       number += gridDim.x) {
    const std::int32_t at = number / p.heads, head = number % p.heads;
    const QueryPart part = is_mixture ? find_group(p, at, lane) : find_part(p, at, at + 1, lane);
    if (part.count == 0) break;
    work(part.row, head, choice_row(p, part, 0, head));
  }
}

__global__ void __launch_bounds__(kChooseWarps * 32) choose_kernel(const __grid_constant__ SelectParams p) {
  __shared__ Chosen<1> chosen;
  __shared__ ChoiceScratch<1> scratch;
  if (threadIdx.x == 0) chosen.gathered[0] = 0;
  __syncthreads();
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for_each_choice(p, lane, [&](std::int32_t row, std::int32_t head, const ChoiceRow& choice) {
    choose_blocks(chosen, scratch, 1, ChoiceTeam(1, kChooseWarps, warp), choice, lane);
    if (warp == 0) {
      std::int32_t* const to = p.topk_indices.row(head, row);
      store_choice(chosen.blocks[0], chosen.counts[0], p.rules.topk, to, p.topk_indices.strides[2], lane);
    }
    __syncthreads();
  });
}

}  // namespace openmsa::cuda::sm90::decode
