// Launches the index branch.
#pragma once

#include <algorithm>

#include "cuda/sm90/prefill/select/kernels.h"
#include "cuda/sm90/prefill/select/select.cuh"
#include "cuda/sm90/tile/element.cuh"

namespace openmsa::cuda::sm90::prefill {

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim, int kBlock, int kCapacity>
void launch_select(const SelectParams& p, const CUtensorMap& index_k, int max_tiles, Launch launch) {
  using Config = SelectConfig<Element<kDtype>, Element<kCached>, kDim, kBlock, kCapacity>;
  const unsigned int ctas = std::min(launch.num_sms, max_tiles * p.most_splits);
  cuda::launch("select", select_kernel<Config>, {ctas, Config::kThreads, sizeof(typename Config::Storage) + 1024},
               launch.stream, p, index_k);
  if constexpr (!Config::kStoresScores) {
    if (p.most_splits > 1) {
      const int rows = p.queries_per_tile * p.heads;
      cuda::launch("merge_lists", merge_lists_kernel<kCapacity>,
                   {ctas_for(std::min(max_tiles, kSelectItems / 2) * rows, kMergeWarps), kMergeWarps * 32, 0},
                   launch.stream, p);
    }
  }
}

}  // namespace openmsa::cuda::sm90::prefill
