// Launches the attention of a schedule batch.
#pragma once

#include <algorithm>

#include "cuda/sm90/prefill/kernels.h"
#include "cuda/sm90/prefill/kv_outer.cuh"
#include "cuda/sm90/prefill/q_outer.cuh"
#include "cuda/sm90/tile/element.cuh"

namespace openmsa::cuda::sm90::prefill {

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim, int kBlock>
void launch_attend(const AttendBatches& batches, int count, const AttendMaps& maps, Launch launch) {
  using KvOuter = KvOuterConfig<Element<kDtype>, Element<kCached>, kDim, kBlock>;
  using QOuter = QOuterConfig<Element<kDtype>, Element<kCached>, kDim, kBlock>;
  const auto num_sms = static_cast<unsigned int>(launch.num_sms), rows = static_cast<unsigned int>(count);
  const auto tiles = static_cast<unsigned int>(batches.of[0].work.max_tiles);
  cuda::launch("kv_outer", kv_outer_kernel<KvOuter>, {{num_sms, rows}, KvOuter::kThreads, KvOuter::kSharedBytes},
               launch.stream, batches, maps.kv_outer_q, maps.k, maps.v);
  cuda::launch("q_outer", q_outer_kernel<QOuter>,
               {{std::min(num_sms, tiles), rows}, QOuter::kThreads, QOuter::kSharedBytes}, launch.stream, batches,
               maps.q_outer_q, maps.k, maps.v);
}

}  // namespace openmsa::cuda::sm90::prefill
