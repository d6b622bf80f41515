// Launches the kernels of block recall.
#pragma once

#include "cuda/generic/recall/compare.cuh"
#include "cuda/sm80/recall/kernels.h"
#include "cuda/sm80/recall/mass.cuh"

namespace openmsa::cuda::sm80::recall {

template <openmsa_dtype kDtype, int kDim>
void launch_recall(const RecallParams& p, Launch launch) {
  using Config = MassConfig<Element<kDtype>, kDim>;
  const auto tiles = static_cast<unsigned int>(p.tiles), heads = static_cast<unsigned int>(p.heads);
  cuda::launch("recall_mass", mass_kernel<Config>, {{tiles, heads}, Config::kThreads, sizeof(typename Config::Storage)},
               launch.stream, p);
  generic::recall::launch_compare(p, launch);
}

}  // namespace openmsa::cuda::sm80::recall
