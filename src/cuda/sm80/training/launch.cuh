// Launches the kernels of training: as many CTAs as take items side by side.
#pragma once

#include "cuda/sm80/training/backward.cuh"
#include "cuda/sm80/training/kernels.h"
#include "cuda/sm80/training/kl/index_lse.cuh"
#include "cuda/sm80/training/kl/kv_outer.cuh"
#include "cuda/sm80/training/kl/teacher.cuh"

namespace openmsa::cuda::sm80::training {

template <openmsa_dtype kDtype, int kDim>
void launch_backward(const generic::training::BackwardParams& p, const BackwardTensors& t, Launch launch) {
  using Config = BackwardConfig<Element<kDtype>, kDim>;
  cuda::launch("backward", backward_kernel<Config>,
               {{static_cast<unsigned int>(launch.num_sms)}, kThreads, sizeof(typename Config::Storage)}, launch.stream,
               p, t);
}

template <openmsa_dtype kDtype, int kDim>
void launch_teacher(const generic::training::kl::Params& p, const TeacherTensors& t, Launch launch) {
  using Config = kl::TeacherConfig<Element<kDtype>, kDim>;
  cuda::launch("teacher", kl::teacher_kernel<Config>,
               {{2 * static_cast<unsigned int>(launch.num_sms)}, kThreads, sizeof(typename Config::Storage)},
               launch.stream, p, t);
}

template <openmsa_dtype kDtype, int kIndexDim>
void launch_index_lse(const generic::training::kl::Params& p, const KeyTensor& index_k, Launch launch) {
  using Config = kl::IndexLseConfig<Element<kDtype>, kIndexDim>;
  cuda::launch("index_lse", kl::index_lse_kernel<Config>,
               {{static_cast<unsigned int>(launch.num_sms)}, kThreads, sizeof(typename Config::Storage)}, launch.stream,
               p, index_k);
}

template <openmsa_dtype kDtype, int kIndexDim>
void launch_kl(const generic::training::kl::Params& p, const KeyTensor& index_k, Launch launch) {
  using Config = kl::Config<Element<kDtype>, kIndexDim>;
  cuda::launch("kl", kl::kl_kernel<Config>,
               {{static_cast<unsigned int>(launch.num_sms)}, kThreads, sizeof(typename Config::Storage)}, launch.stream,
               p, index_k);
}

}  // namespace openmsa::cuda::sm80::training
