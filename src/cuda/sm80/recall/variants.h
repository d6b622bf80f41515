// The kernels of block recall that are compiled.
#pragma once

#include "cuda/common/variant.h"
#include "cuda/sm80/recall/kernels.h"

namespace openmsa::cuda::sm80::recall {

using RecallVariant = Variant<DtypeAndDim, RecallFunction>;

template <openmsa_dtype kDtype, int kDim>
inline constexpr RecallVariant kRecall = {{kDtype, kDim}, &launch_recall<kDtype, kDim>};

inline constexpr RecallVariant kRecallVariants[] = {kRecall<OPENMSA_BFLOAT16, 64>, kRecall<OPENMSA_BFLOAT16, 128>,
                                                    kRecall<OPENMSA_FLOAT16, 64>, kRecall<OPENMSA_FLOAT16, 128>};

}  // namespace openmsa::cuda::sm80::recall
