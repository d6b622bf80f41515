// The backward kernels that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm90/training/kernels.h"

namespace openmsa::cuda::sm90::training {

struct BackwardKey {
  openmsa_dtype dtype;
  int dim;
  bool operator==(const BackwardKey&) const = default;
};
using BackwardVariant = Variant<BackwardKey, BackwardFunction>;

template <openmsa_dtype kDtype, int kDim>
inline constexpr BackwardVariant kBackward = {{kDtype, kDim}, &launch_backward<kDtype, kDim>};

inline constexpr BackwardVariant kBackwardVariants[] = {
    kBackward<OPENMSA_BFLOAT16, 64>,
    kBackward<OPENMSA_BFLOAT16, 128>,  //
    kBackward<OPENMSA_FLOAT16, 64>,
    kBackward<OPENMSA_FLOAT16, 128>,
};

}  // namespace openmsa::cuda::sm90::training
