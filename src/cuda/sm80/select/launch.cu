#include <algorithm>

#include "cuda/common/launch.h"
#include "cuda/sm80/select/choose.cuh"
#include "cuda/sm80/select/kernels.h"

namespace openmsa::cuda::sm80::select {

bool has_code() {
  cudaFuncAttributes attributes;
  const bool exists = cudaFuncGetAttributes(&attributes, choose_kernel<false>) == cudaSuccess;
  if (!exists) cudaGetLastError();
  return exists;
}

void launch_merge(const SelectParams& p, int capacity, Launch launch) {
  constexpr unsigned int kCtasPerSm = 8;
  const auto kernel = p.rules.topk <= kListCapacities[0] ? merge_lists_kernel<false> : merge_lists_kernel<true>;
  cuda::launch("merge_lists", kernel, {{kCtasPerSm * launch.num_sms}, kChooseWarps * 32, 0}, launch.stream, p,
               capacity);
}

void launch_choose(const SelectParams& p, int max_tiles, Launch launch) {
  constexpr int kCtasPerSm = 8;
  const unsigned int all = ctas_for(std::int64_t{max_tiles} * p.queries_per_tile * p.heads, kChooseWarps);
  const unsigned int ctas = std::min<unsigned int>(all, kCtasPerSm * launch.num_sms);
  const auto kernel = p.rules.topk <= kListCapacities[0] ? choose_kernel<false> : choose_kernel<true>;
  cuda::launch("decode_choose", kernel, {{ctas}, kChooseWarps * 32, 0}, launch.stream, p);
}

}  // namespace openmsa::cuda::sm80::select
