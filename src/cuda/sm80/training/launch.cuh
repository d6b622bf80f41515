// Launches the kernels of training: as many CTAs as take items side by side.
#pragma once

#include "cuda/sm80/training/backward.cuh"
#include "cuda/sm80/training/kernels.h"
#include "cuda/sm80/training/kl/index_lse.cuh"
#include "cuda/sm80/training/kl/kv_outer.cuh"
#include "cuda/sm80/training/kl/teacher.cuh"

namespace openmsa::cuda::sm80::training {

template <class Config, class Params, class Tensors>
void launch_items(const char* name, void (*kernel)(Params, Tensors), unsigned int ctas_per_sm, const Params& p,
                  const Tensors& t, Launch launch) {
  const unsigned int ctas = ctas_per_sm * static_cast<unsigned int>(launch.num_sms);
  cuda::launch(name, kernel, {{ctas}, kThreads, sizeof(typename Config::Storage)}, launch.stream, p, t);
}

template <openmsa_dtype kDtype, int kDim>
void launch_backward(const generic::training::BackwardParams& p, const BackwardTensors& t, Launch launch) {
  using Config = BackwardConfig<Element<kDtype>, kDim>;
  launch_items<Config>("backward", backward_kernel<Config>, 1, p, t, launch);
}

template <openmsa_dtype kDtype, int kDim>
void launch_teacher(const generic::training::kl::Params& p, const TeacherTensors& t, Launch launch) {
  using Config = kl::TeacherConfig<Element<kDtype>, kDim>;
  launch_items<Config>("teacher", kl::teacher_kernel<Config>, 2, p, t, launch);
}

template <openmsa_dtype kDtype, int kIndexDim>
void launch_index_lse(const generic::training::kl::Params& p, const KeyTensor& index_k, Launch launch) {
  using Config = kl::IndexLseConfig<Element<kDtype>, kIndexDim>;
  launch_items<Config>("index_lse", kl::index_lse_kernel<Config>, 1, p, index_k, launch);
}

template <openmsa_dtype kDtype, int kIndexDim>
void launch_kl(const generic::training::kl::Params& p, const KeyTensor& index_k, Launch launch) {
  using Config = kl::Config<Element<kDtype>, kIndexDim>;
  launch_items<Config>("kl", kl::kl_kernel<Config>, 1, p, index_k, launch);
}

}  // namespace openmsa::cuda::sm80::training
