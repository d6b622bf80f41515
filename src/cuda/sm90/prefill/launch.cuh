// Launches the attention of a schedule batch.
#pragma once

#include <algorithm>

#include "cuda/sm90/prefill/kernels.h"
#include "cuda/sm90/prefill/kv_outer.cuh"
#include "cuda/sm90/prefill/q_outer.cuh"
#include "cuda/sm90/tile/element.cuh"

namespace openmsa::cuda::sm90::prefill {

template <openmsa_dtype kDtype, int kDim, int kBlock>
void launch_attend(const AttendParams& p, const AttendMaps& maps, Launch launch) {
  using Gathered = GatheredConfig<Element<kDtype>, kDim, kBlock>;
  using Union = UnionConfig<Element<kDtype>, kDim, kBlock>;
  const auto num_sms = static_cast<unsigned int>(launch.num_sms);
  cuda::launch("gathered", gathered_kernel<Gathered>,
               {num_sms, Gathered::kThreads, sizeof(typename Gathered::Storage) + 1024}, launch.stream, p,
               maps.gathered_q, maps.k, maps.v);
  cuda::launch("union", union_kernel<Union>,
               {std::min(num_sms, static_cast<unsigned int>(p.work.max_tiles)), Union::kThreads,
                sizeof(typename Union::Storage) + 1024},
               launch.stream, p, maps.union_q, maps.k, maps.v);
}

}  // namespace openmsa::cuda::sm90::prefill
