// Entry points of the kernels that make lists.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/generic/lists/params.h"

namespace openmsa::cuda::generic {

/// Items of p's list batch and, unless it is dense, their visits. index_batch comes before, once for all batches of a
/// call; p.bits are zero.
void make_lists(const ListParams& p, Launch launch);

}  // namespace openmsa::cuda::generic
