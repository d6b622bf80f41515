#include "cuda/common/launch.h"
#include "cuda/sm90/decode/choose_kernel.cuh"
#include "cuda/sm90/decode/kernels.h"

namespace openmsa::cuda::sm90::decode {

void launch_choose(const SelectParams& p, Launch launch) {
  cuda::launch("decode_choose", choose_kernel,
               {static_cast<unsigned int>(p.batch.total_q * p.heads), kChooseWarps * 32, 0}, launch.stream, p);
}

}  // namespace openmsa::cuda::sm90::decode
