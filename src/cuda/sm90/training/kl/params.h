// The KL loss on Hopper: what its kernels add to the parameters of generic/training/kl.
#pragma once

#include "cuda/sm90/training/params.h"

namespace openmsa::cuda::sm90::training::kl {

using namespace generic::training::kl;
using generic::training::kl::RowStats;

}  // namespace openmsa::cuda::sm90::training::kl
