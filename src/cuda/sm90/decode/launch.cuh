// Launches the kernels of a decode step.
#pragma once

#include <algorithm>

#include "cuda/common/cluster_occupancy.h"
#include "cuda/sm90/decode/attend.cuh"
#include "cuda/sm90/decode/kernels.h"
#include "cuda/sm90/decode/select.cuh"
#include "cuda/sm90/tile/element.cuh"

namespace openmsa::cuda::sm90::decode {

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim, bool kIsExact>
void launch_select(const SelectParams& p, const CUtensorMap& index_k, Launch launch) {
  using Query = Element<kDtype>;
  using Cached = Element<kCached>;
  const auto start = [&](auto rows, auto is_alone) {
    using Config = SelectConfig<Query, Cached, kDim, decltype(rows)::value, decltype(is_alone)::value, kIsExact>;
    const unsigned int ctas = launch.num_sms * Config::kCtasPerSm;
    cuda::launch("decode_select", select_kernel<Config>, {ctas, Config::kThreads, Config::kSharedBytes}, launch.stream,
                 p, index_k);
  };
  switch (p.tile_rows) {
    case kDecodeTileRows[0]:
      if (index_cta_is_alone(p.batch.batch)) return start(cute::Int<kDecodeTileRows[0]>{}, cute::true_type{});
      return start(cute::Int<kDecodeTileRows[0]>{}, cute::false_type{});
    case kDecodeTileRows[1]:
      return start(cute::Int<kDecodeTileRows[1]>{}, cute::false_type{});
    case kDecodeTileRows[2]:
      return start(cute::Int<kDecodeTileRows[2]>{}, cute::false_type{});
    default:
      return start(cute::Int<kMostDecodeTileRows>{}, cute::false_type{});
  }
}

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_select(const SelectParams& p, const CUtensorMap& index_k, Launch launch) {
  if constexpr (kCached == OPENMSA_FLOAT8_E4M3) {
    if (p.index_q.rounding == OPENMSA_INDEX_Q_EXACT) {
      return launch_select<kDtype, kCached, kDim, true>(p, index_k, launch);
    }
  }
  launch_select<kDtype, kCached, kDim, false>(p, index_k, launch);
}

template <openmsa_dtype kDtype, openmsa_dtype kCached, int kDim>
void launch_attend(const AttendParams& p, const CUtensorMap& k, const CUtensorMap& v, Launch launch) {
  const SelectParams& s = p.select;
  const bool is_mixture = !s.served.is_open();
  const std::int64_t groups = is_mixture
                                  ? std::min<std::int64_t>(s.batch.total_q, std::int64_t{s.batch.batch} * s.served.most)
                                  : covering(s.batch.total_q, s.group_queries);
  const auto start = [&](auto config, unsigned int ctas_per_sm) {
    using Config = decltype(config);
    const auto clusters = static_cast<unsigned int>(
        is_mixture ? mixture_clusters(groups, s.heads, launch.num_sms, ctas_per_sm) : groups * s.heads);
    // e4m3 takes as much as 16 bits: CTAs that could share an SM with more others do not finish earlier for it.
    using Widest =
        AttendConfig<typename Config::Element, typename Config::Element, kDim, Config::kQueries, Config::kKeySlices>;
    constexpr std::size_t kShared = sizeof(typename Widest::Storage) + 1024;
    static_assert(sizeof(typename Config::Storage) <= sizeof(typename Widest::Storage));
    static_assert(Config::kQueries > 1 || kShared + kMoreThanHalfOfShared + 2048 <= kSharedOfSm,
                  "one waits beside a CTA of the index branch that is otherwise alone");
    static ClusterOccupancy occupancy;
    const auto active = [&](unsigned int ctas) {
      return occupancy.active(ctas, [&] {
        return active_clusters(attend_kernel<Config>, {ctas, Config::kThreads, kShared, ctas});
      });
    };
    const unsigned int ctas = cluster_ctas(clusters, launch.num_sms, ctas_per_sm, active);
    cuda::launch("decode_attend", attend_kernel<Config>, {clusters * ctas, Config::kThreads, kShared, ctas},
                 launch.stream, p, k, v);
  };
  if constexpr (kCached != OPENMSA_FLOAT8_E4M3) {
    if (s.group_queries != 1) {
      return start(AttendConfig<Element<kDtype>, Element<kCached>, kDim, kClusterQueries, 2>{}, 1);
    }
  }
  start(AttendConfig<Element<kDtype>, Element<kCached>, kDim, 1, 4>{}, 2);
}

}  // namespace openmsa::cuda::sm90::decode
