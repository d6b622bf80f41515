// The KL kernels that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm90/training/kl/kernels.h"

namespace openmsa::cuda::sm90::training::kl {

using TeacherVariant = Variant<DtypeAndDim, TeacherFunction>;
using IndexKeysVariant = Variant<DtypeAndDim, IndexKeysFunction>;

template <openmsa_dtype kDtype, int kDim>
inline constexpr TeacherVariant kTeacher = {{kDtype, kDim}, &launch_teacher<kDtype, kDim>};
template <openmsa_dtype kDtype, int kDim>
inline constexpr IndexKeysVariant kIndexLse = {{kDtype, kDim}, &launch_index_lse<kDtype, kDim>};
template <openmsa_dtype kDtype, int kDim>
inline constexpr IndexKeysVariant kKl = {{kDtype, kDim}, &launch_kl<kDtype, kDim>};

inline constexpr TeacherVariant kTeacherVariants[] = {
    kTeacher<OPENMSA_BFLOAT16, 64>,
    kTeacher<OPENMSA_BFLOAT16, 128>,  //
    kTeacher<OPENMSA_FLOAT16, 64>,
    kTeacher<OPENMSA_FLOAT16, 128>,
};
inline constexpr IndexKeysVariant kIndexLseVariants[] = {
    kIndexLse<OPENMSA_BFLOAT16, 64>,
    kIndexLse<OPENMSA_BFLOAT16, 128>,  //
    kIndexLse<OPENMSA_FLOAT16, 64>,
    kIndexLse<OPENMSA_FLOAT16, 128>,
};
inline constexpr IndexKeysVariant kKlVariants[] = {
    kKl<OPENMSA_BFLOAT16, 64>,
    kKl<OPENMSA_BFLOAT16, 128>,  //
    kKl<OPENMSA_FLOAT16, 64>,
    kKl<OPENMSA_FLOAT16, 128>,
};

}  // namespace openmsa::cuda::sm90::training::kl
