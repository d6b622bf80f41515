#include "cuda/generic/recall/compare.cuh"
#include "cuda/sm90/recall/kernels.h"

namespace openmsa::cuda::sm90::recall {

void launch_compare(const RecallParams& p, Launch launch) { generic::recall::launch_compare(p, launch); }

}  // namespace openmsa::cuda::sm90::recall
