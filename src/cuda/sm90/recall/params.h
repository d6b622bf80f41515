// Block recall: parameters of its two kernels.
#pragma once

#include "cuda/generic/recall/params.h"
#include "cuda/sm90/dense/params.h"

namespace openmsa::cuda::sm90::recall {

using RecallParams = generic::recall::RecallParams<dense::PromptParams>;

}  // namespace openmsa::cuda::sm90::recall
