// Launches the kernels of block recall.
#pragma once

#include "cuda/sm90/recall/kernels.h"
#include "cuda/sm90/recall/mass.cuh"
#include "cuda/sm90/tile/element.cuh"

namespace openmsa::cuda::sm90::recall {

template <openmsa_dtype kDtype, int kDim>
void launch_recall(const RecallParams& p, const CUtensorMap& q, const CUtensorMap& k, Launch launch) {
  using Config = MassConfig<Element<kDtype>, kDim>;
  cuda::launch("recall_mass", mass_kernel<Config>,
               {static_cast<unsigned int>(launch.num_sms), Config::kThreads, sizeof(typename Config::Storage) + 1024},
               launch.stream, p, q, k);
  launch_compare(p, launch);
}

}  // namespace openmsa::cuda::sm90::recall
