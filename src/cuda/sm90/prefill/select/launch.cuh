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
  const unsigned int ctas = std::min(launch.num_sms, max_tiles * p.num_splits);
  cuda::launch("select", select_kernel<Config>, {ctas, Config::kThreads, sizeof(typename Config::Storage) + 1024},
               launch.stream, p, index_k);
  if constexpr (!Config::kStoresScores) {
    if (p.num_splits > 1) {
      constexpr unsigned int kThreads = 128;
      const unsigned int rows = p.batch.total_q * p.heads;
      cuda::launch("merge_lists", merge_lists_kernel<Config::kCapacity>,
                   {(rows + kThreads - 1) / kThreads, kThreads, 0}, launch.stream, p);
    }
  }
}

}  // namespace openmsa::cuda::sm90::prefill
