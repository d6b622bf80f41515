#include "cuda/common/launch.h"
#include "cuda/sm90/decode/choose_kernel.cuh"
#include "cuda/sm90/launches.h"

namespace openmsa::cuda::sm90 {

void decode_choose(const DecodeSelectParams& p, Launch launch) {
  cuda::launch("decode_choose", decode_choose_kernel,
               {static_cast<unsigned int>(p.batch.total_q * p.heads), kChooseWarps * 32, 0}, launch.stream, p);
}

}  // namespace openmsa::cuda::sm90
