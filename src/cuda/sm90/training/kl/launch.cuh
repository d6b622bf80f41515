// Launches the kernels of the KL loss that work on tiles.
#pragma once

#include "cuda/sm90/tile/element.cuh"
#include "cuda/sm90/training/kl/index_lse.cuh"
#include "cuda/sm90/training/kl/kernels.h"
#include "cuda/sm90/training/kl/kv_outer.cuh"
#include "cuda/sm90/training/kl/teacher.cuh"

namespace openmsa::cuda::sm90::training::kl {

template <openmsa_dtype kDtype, int kIndexDim>
void launch_index_lse(const Params& p, const CUtensorMap& index_k, Launch launch) {
  using Config = IndexLseConfig<Element<kDtype>, kIndexDim, kTileKeys>;
  cuda::launch(
      "index_lse", index_lse_kernel<Config>,
      {2 * static_cast<unsigned int>(launch.num_sms), Config::kThreads, sizeof(typename Config::Storage) + 1024},
      launch.stream, p, index_k);
}

template <openmsa_dtype kDtype, int kDim>
void launch_teacher(const Params& p, const CUtensorMap& q, const CUtensorMap& k, Launch launch) {
  using Config = TeacherConfig<Element<kDtype>, kDim>;
  cuda::launch("teacher", teacher_kernel<Config>,
               {static_cast<unsigned int>(launch.num_sms), Config::kThreads, sizeof(typename Config::Storage) + 1024},
               launch.stream, p, q, k);
}

template <openmsa_dtype kDtype, int kIndexDim>
void launch_kl(const Params& p, const CUtensorMap& index_k, Launch launch) {
  using Steps = Config<Element<kDtype>, kIndexDim>;
  cuda::launch("kl", kl_kernel<Steps>,
               {static_cast<unsigned int>(launch.num_sms), Steps::kThreads, sizeof(typename Steps::Storage) + 1024},
               launch.stream, p, index_k);
}

}  // namespace openmsa::cuda::sm90::training::kl
