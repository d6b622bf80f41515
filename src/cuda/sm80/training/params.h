// Gradient of attention and KL loss of the portable kernels: parameters beside those of generic/training.
#pragma once

#include "cuda/generic/training/kl/params.h"
#include "cuda/sm80/tile/keys.h"

namespace openmsa::cuda::sm80::training {

struct BackwardTensors {
  QueryRows q, d_o;
  KeyTensor k, v;
};

struct TeacherTensors {
  QueryRows q;
  KeyTensor k;
};

}  // namespace openmsa::cuda::sm80::training
