// The kernels of training that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm80/training/kernels.h"

namespace openmsa::cuda::sm80::training {

struct TrainingKernels {
  BackwardFunction* backward;
  TeacherFunction* teacher;
  IndexKeysFunction* index_lse;
  IndexKeysFunction* kl;
};

template <openmsa_dtype kDtype, int kDim>
inline constexpr TrainingKernels kKernels = {launch_backward<kDtype, kDim>, launch_teacher<kDtype, kDim>,
                                             launch_index_lse<kDtype, kDim>, launch_kl<kDtype, kDim>};

inline constexpr Variant<DtypeAndDim, const TrainingKernels> kVariants[] = {
    {{OPENMSA_BFLOAT16, 64}, &kKernels<OPENMSA_BFLOAT16, 64>},
    {{OPENMSA_BFLOAT16, 128}, &kKernels<OPENMSA_BFLOAT16, 128>},
    {{OPENMSA_FLOAT16, 64}, &kKernels<OPENMSA_FLOAT16, 64>},
    {{OPENMSA_FLOAT16, 128}, &kKernels<OPENMSA_FLOAT16, 128>},
};

}  // namespace openmsa::cuda::sm80::training
