#include "cuda/common/launch.h"
#include "cuda/generic/topk/kernels.h"
#include "cuda/generic/topk/topk.cuh"

namespace openmsa::cuda::generic {
namespace {

/// Rows that can be read 16 bytes at a time.
bool is_contiguous(const TopkParams& p) {
  const ScoreView& scores = p.block_scores;
  return reinterpret_cast<std::uintptr_t>(scores.data) % 16 == 0 && scores.strides[2] == 1 &&
         scores.strides[0] % 4 == 0 && scores.strides[1] % 4 == 0;
}

template <bool kWide>
void launch_rows(const TopkParams& p, Launch launch) {
  const auto ctas = static_cast<unsigned int>((p.batch.total_q + kTopkWarps - 1) / kTopkWarps);
  const auto kernel = is_contiguous(p) ? topk_kernel<kWide, true> : topk_kernel<kWide, false>;
  cuda::launch("topk", kernel, {{ctas, static_cast<unsigned int>(p.heads), 1}, kTopkWarps * 32, 0}, launch.stream, p);
}

}  // namespace

void launch_topk(const TopkParams& p, Launch launch) {
  constexpr int kNarrow = 16;
  p.rules.topk <= kNarrow ? launch_rows<false>(p, launch) : launch_rows<true>(p, launch);
}

}  // namespace openmsa::cuda::generic
