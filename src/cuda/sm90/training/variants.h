// The backward kernels that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm90/training/kernels.h"

namespace openmsa::cuda::sm90::training {

struct BackwardKey {
  openmsa_dtype dtype;
  int dim;
  TeacherMeans means;
  bool operator==(const BackwardKey&) const = default;
};
using BackwardVariant = Variant<BackwardKey, BackwardFunction>;

template <openmsa_dtype kDtype, int kDim, TeacherMeans kMeans>
inline constexpr BackwardVariant kBackward = {{kDtype, kDim, kMeans}, &launch_backward<kDtype, kDim, kMeans>};

inline constexpr BackwardVariant kBackwardVariants[] = {
    kBackward<OPENMSA_BFLOAT16, 64, TeacherMeans::kNone>,
    kBackward<OPENMSA_BFLOAT16, 64, TeacherMeans::kByProducts>,
    kBackward<OPENMSA_BFLOAT16, 64, TeacherMeans::kBetweenLanes>,
    kBackward<OPENMSA_BFLOAT16, 128, TeacherMeans::kNone>,
    kBackward<OPENMSA_BFLOAT16, 128, TeacherMeans::kByProducts>,
    kBackward<OPENMSA_BFLOAT16, 128, TeacherMeans::kBetweenLanes>,
    kBackward<OPENMSA_FLOAT16, 64, TeacherMeans::kNone>,
    kBackward<OPENMSA_FLOAT16, 64, TeacherMeans::kByProducts>,
    kBackward<OPENMSA_FLOAT16, 64, TeacherMeans::kBetweenLanes>,
    kBackward<OPENMSA_FLOAT16, 128, TeacherMeans::kNone>,
    kBackward<OPENMSA_FLOAT16, 128, TeacherMeans::kByProducts>,
    kBackward<OPENMSA_FLOAT16, 128, TeacherMeans::kBetweenLanes>,
};

}  // namespace openmsa::cuda::sm90::training
