#pragma once

#include "cuda/common/launch.h"
#include "cuda/sm90/launches.h"
#include "cuda/sm90/select/select.cuh"

namespace openmsa::cuda::sm90 {

template <class Config>
void launch_select(const SelectParams& p, const CUtensorMap& index_k, int max_tiles, Launch launch) {
  const unsigned int blocks = std::min(launch.num_sms, max_tiles * p.num_splits);
  cuda::launch("select", select_kernel<Config>, {blocks, Config::kThreads, sizeof(typename Config::Storage) + 1024},
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

}  // namespace openmsa::cuda::sm90
