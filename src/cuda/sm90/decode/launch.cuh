// Launches the kernels of a decode step.
#pragma once

#include <algorithm>

#include "cuda/sm90/decode/attend.cuh"
#include "cuda/sm90/decode/kernels.h"
#include "cuda/sm90/decode/select.cuh"
#include "cuda/sm90/tile/element.cuh"

namespace openmsa::cuda::sm90::decode {

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_select(const SelectParams& p, const CUtensorMap& index_k, Launch launch) {
  const auto start = [&](auto config) {
    using Config = decltype(config);
    const auto ctas = static_cast<unsigned int>(p.lists.ctas);
    constexpr std::size_t kShared = std::max(sizeof(typename Config::Storage) + 1024, kMoreThanHalfOfShared);
    cuda::launch("decode_select", select_kernel<Config>, {ctas, Config::kThreads, kShared}, launch.stream, p, index_k);
  };
  using Query = Element<kDtype>;
  using Key = Element<kCached>;
  if (p.lists.tile_rows == kDecodeTileRows[0]) return start(SelectConfig<Query, Key, kDim, kDecodeTileRows[0]>{});
  if (p.lists.tile_rows == kDecodeTileRows[1]) return start(SelectConfig<Query, Key, kDim, kDecodeTileRows[1]>{});
  start(SelectConfig<Query, Key, kDim, kDecodeTileRows[2]>{});
}

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_attend(const AttendParams& p, const CUtensorMap& k, const CUtensorMap& v, Launch launch) {
  const auto clusters = static_cast<unsigned int>(p.select.heads) *
                        ((p.select.batch.total_q + p.cluster_queries - 1) / p.cluster_queries);
  const auto start = [&](auto config, unsigned int ctas_per_sm) {
    using Config = decltype(config);
    constexpr std::size_t kShared = sizeof(typename Config::Storage) + 1024;
    const auto active = [&](unsigned int ctas) {
      return active_clusters(attend_kernel<Config>, {ctas, Config::kThreads, kShared, ctas});
    };
    const unsigned int ctas = cluster_ctas(clusters, Config::kQueries, launch.num_sms, ctas_per_sm, active);
    cuda::launch("decode_attend", attend_kernel<Config>, {clusters * ctas, Config::kThreads, kShared, ctas},
                 launch.stream, p, k, v);
  };
  if (p.cluster_queries == 1) {
    start(AttendConfig<Element<kDtype>, Element<kCached>, kDim, 1, 4>{}, 2);
  } else {
    start(AttendConfig<Element<kDtype>, Element<kCached>, kDim, kClusterQueries, 2>{}, 1);
  }
}

}  // namespace openmsa::cuda::sm90::decode
