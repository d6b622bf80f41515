// Launches the backward kernel.
#pragma once

#include "cuda/sm90/tile/element.cuh"
#include "cuda/sm90/training/backward.cuh"
#include "cuda/sm90/training/kernels.h"

namespace openmsa::cuda::sm90::training {

template <openmsa_dtype kDtype, int kDim, TeacherMeans kMeans>
void launch_backward(const BackwardParams& p, const BackwardMaps& maps, Launch launch) {
  using Config = BackwardConfig<Element<kDtype>, kDim, kMeans>;
  cuda::launch("backward", backward_kernel<Config>,
               {{static_cast<unsigned int>(launch.num_sms)}, Config::kThreads, sizeof(typename Config::Storage) + 1024},
               launch.stream, p, maps.q, maps.d_o, maps.k, maps.v);
}

}  // namespace openmsa::cuda::sm90::training
