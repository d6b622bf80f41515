#include "cuda/common/launch.h"
#include "cuda/sm90/recall/compare.cuh"
#include "cuda/sm90/recall/kernels.h"

namespace openmsa::cuda::sm90::recall {

void launch_compare(const RecallParams& p, Launch launch) {
  const dim3 ctas(static_cast<unsigned int>(p.tiles), static_cast<unsigned int>(p.heads));
  cuda::launch("recall_compare", compare_kernel, {ctas, 32 * kCompareWarps, 0}, launch.stream, p);
}

}  // namespace openmsa::cuda::sm90::recall
