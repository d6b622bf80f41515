// Entry points of the compiled kernels of training.
#pragma once

#include <openmsa/openmsa.h>

#include "cuda/common/launch.h"
#include "cuda/sm80/training/params.h"

namespace openmsa::cuda::sm80::training {

/// generic::training::TileKernels::backward, without the teacher; teacher; index_lse and kl.
using BackwardFunction = void(const generic::training::BackwardParams& p, const BackwardTensors& t, Launch launch);
using TeacherFunction = void(const generic::training::kl::Params& p, const TeacherTensors& t, Launch launch);
using IndexKeysFunction = void(const generic::training::kl::Params& p, const KeyTensor& index_k, Launch launch);

/// Compiled by instantiate.cu.in for the rows of variants.h.
template <openmsa_dtype kDtype, int kDim>
void launch_backward(const generic::training::BackwardParams& p, const BackwardTensors& t, Launch launch);
template <openmsa_dtype kDtype, int kDim>
void launch_teacher(const generic::training::kl::Params& p, const TeacherTensors& t, Launch launch);
template <openmsa_dtype kDtype, int kIndexDim>
void launch_index_lse(const generic::training::kl::Params& p, const KeyTensor& index_k, Launch launch);
template <openmsa_dtype kDtype, int kIndexDim>
void launch_kl(const generic::training::kl::Params& p, const KeyTensor& index_k, Launch launch);

}  // namespace openmsa::cuda::sm80::training
