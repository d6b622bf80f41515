#pragma once

#include "cuda/common/launch.h"
#include "cuda/sm90/launches.h"
#include "cuda/sm90/prefill/gathered.cuh"
#include "cuda/sm90/prefill/unioned.cuh"

namespace openmsa::cuda::sm90 {

template <class Element, int kDim, int kBlock>
void launch_prefill(const PrefillParams& p, const PrefillMaps& maps, Launch launch) {
  using Gathered = GatheredConfig<Element, kDim, kBlock>;
  using Union = UnionConfig<Element, kDim, kBlock>;
  const auto num_sms = static_cast<unsigned int>(launch.num_sms);
  cuda::launch("gathered", gathered_kernel<Gathered>,
               {num_sms, Gathered::kThreads, sizeof(typename Gathered::Storage) + 1024}, launch.stream, p,
               maps.gathered_q, maps.k, maps.v);
  cuda::launch("union", union_kernel<Union>,
               {std::min(num_sms, static_cast<unsigned int>(p.chunk.max_tiles)), Union::kThreads,
                sizeof(typename Union::Storage) + 1024},
               launch.stream, p, maps.union_q, maps.k, maps.v);
}

}  // namespace openmsa::cuda::sm90
