// The backward kernels that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm90/training/kernels.h"

namespace openmsa::cuda::sm90::training {

struct BackwardKey {
  openmsa_dtype dtype;
  int dim;
  bool gives_teacher;  // writes BackwardParams::teacher
  bool operator==(const BackwardKey&) const = default;
};
using BackwardVariant = Variant<BackwardKey, BackwardFunction>;

template <openmsa_dtype kDtype, int kDim, bool kGivesTeacher>
inline constexpr BackwardVariant kBackward = {{kDtype, kDim, kGivesTeacher},
                                              &launch_backward<kDtype, kDim, kGivesTeacher>};

inline constexpr BackwardVariant kBackwardVariants[] = {
    kBackward<OPENMSA_BFLOAT16, 64, false>,  kBackward<OPENMSA_BFLOAT16, 64, true>,   //
    kBackward<OPENMSA_BFLOAT16, 128, false>, kBackward<OPENMSA_BFLOAT16, 128, true>,  //
    kBackward<OPENMSA_FLOAT16, 64, false>,   kBackward<OPENMSA_FLOAT16, 64, true>,    //
    kBackward<OPENMSA_FLOAT16, 128, false>,  kBackward<OPENMSA_FLOAT16, 128, true>,
};

}  // namespace openmsa::cuda::sm90::training
