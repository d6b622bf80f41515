// candidates from those of the index branch: a CTA per query row and KV head; in a mixture CTAs go over those that are
// served.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/generic/topk/write_candidates.cuh"
#include "cuda/sm90/decode/choose_kernel.cuh"

namespace openmsa::cuda::sm90::decode {

__global__ void __launch_bounds__(kChooseWarps * 32) candidates_kernel(const __grid_constant__ SelectParams p) {
  __shared__ int gathered[1];
  __shared__ ChoiceScratch<1> scratch;
  if (threadIdx.x == 0) gathered[0] = 0;
  __syncthreads();
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for_each_choice(p, lane, [&](std::int32_t row, std::int32_t head, const ChoiceRow& choice) {
    const generic::CandidateRow out{p.candidates.row(head, row), p.candidates.strides[2], p.rules.topk, p.rules.shard};
    generic::write_candidates(gathered, scratch, ChoiceTeam(1, kChooseWarps, warp), choice, out, lane);
  });
}

}  // namespace openmsa::cuda::sm90::decode
