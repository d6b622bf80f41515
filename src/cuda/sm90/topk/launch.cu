#include "cuda/common/launch.h"
#include "cuda/sm90/launches.h"
#include "cuda/sm90/topk/topk.cuh"

namespace openmsa::cuda::sm90 {
namespace {

/// Rows that can be read 16 bytes at a time.
bool is_contiguous(const TopkParams& p) {
  return reinterpret_cast<std::uintptr_t>(p.block_scores) % 16 == 0 && p.score_strides[2] == 1 &&
         p.score_strides[0] % 4 == 0 && p.score_strides[1] % 4 == 0;
}

template <bool kWide>
void launch_topk(const TopkParams& p, Launch launch) {
  const auto blocks = static_cast<unsigned int>((p.batch.total_q + kTopkWarps - 1) / kTopkWarps);
  const auto kernel = is_contiguous(p) ? topk_kernel<kWide, true> : topk_kernel<kWide, false>;
  cuda::launch("topk", kernel, {{blocks, static_cast<unsigned int>(p.heads), 1}, kTopkWarps * 32, 0}, launch.stream, p);
}

}  // namespace

void topk(const TopkParams& p, Launch launch) {
  constexpr int kNarrow = 16;
  p.rules.topk <= kNarrow ? launch_topk<false>(p, launch) : launch_topk<true>(p, launch);
}

}  // namespace openmsa::cuda::sm90
