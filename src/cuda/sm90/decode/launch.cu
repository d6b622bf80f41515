#include <algorithm>

#include "cuda/common/launch.h"
#include "cuda/sm90/decode/candidates_kernel.cuh"
#include "cuda/sm90/decode/choose_kernel.cuh"
#include "cuda/sm90/decode/index_kernel.cuh"
#include "cuda/sm90/decode/kernels.h"

namespace openmsa::cuda::sm90::decode {

void launch_index(const SelectParams& p, Launch launch) {
  cuda::launch("index_sequences", index_sequences_kernel, {{1}, kIndexThreads, 0}, launch.stream, p);
}

void launch_choose(const SelectParams& p, Launch launch) {
  const auto rows = static_cast<unsigned int>(p.batch.total_q * p.heads);
  const unsigned int ctas = p.served.is_open() ? rows : std::min(rows, kChooseCtas * launch.num_sms);
  if (p.candidates.data != nullptr) {
    cuda::launch("decode_candidates", candidates_kernel, {ctas, kChooseWarps * 32, 0}, launch.stream, p);
  } else {
    cuda::launch("decode_choose", choose_kernel, {ctas, kChooseWarps * 32, 0}, launch.stream, p);
  }
}

}  // namespace openmsa::cuda::sm90::decode
