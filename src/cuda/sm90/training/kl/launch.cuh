// Launches the kernels of the KL loss that work on tiles.
#pragma once

#include "cuda/sm90/tile/element.cuh"
#include "cuda/sm90/training/kl/index_lse.cuh"
#include "cuda/sm90/training/kl/kernels.h"
#include "cuda/sm90/training/kl/kv_outer.cuh"

namespace openmsa::cuda::sm90::training::kl {

template <openmsa_dtype kDtype, int kIndexDim>
void launch_index_lse(const Params& p, const CUtensorMap& index_k, Launch launch) {
  using Config = IndexLseConfig<Element<kDtype>, kIndexDim, kTileKeys>;
  cuda::launch(
      "index_lse", index_lse_kernel<Config>,
      {2 * static_cast<unsigned int>(launch.num_sms), Config::kThreads, sizeof(typename Config::Storage) + 1024},
      launch.stream, p, index_k);
}

template <class Config>
void launch_steps(const Params& p, const Maps& maps, Launch launch) {
  cuda::launch("kl", kl_kernel<Config>,
               {static_cast<unsigned int>(launch.num_sms), Config::kThreads, sizeof(typename Config::Storage) + 1024},
               launch.stream, p, maps.q, maps.k, maps.index_k);
}

template <openmsa_dtype kDtype, int kDim, int kIndexDim>
void launch_kl(const Params& p, const Maps& maps, Launch launch) {
  using Type = Element<kDtype>;
  switch (chunks_of_step(1 << p.log2_group_size)) {
    case 1:
      return launch_steps<Config<Type, kDim, kIndexDim, 1>>(p, maps, launch);
    case 2:
      return launch_steps<Config<Type, kDim, kIndexDim, 2>>(p, maps, launch);
    default:
      return launch_steps<Config<Type, kDim, kIndexDim, 4>>(p, maps, launch);
  }
}

}  // namespace openmsa::cuda::sm90::training::kl
