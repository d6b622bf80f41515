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
  const auto start = [&](auto rows, auto capacity, auto ctas_per_sm) {
    using Config = SelectConfig<Query, Cached, kDim, decltype(rows)::value, decltype(capacity)::value,
                                decltype(ctas_per_sm)::value, kIsExact>;
    const auto ctas = static_cast<unsigned int>(p.lists.ctas);
    constexpr std::size_t kStorage = sizeof(typename Config::Storage) + 1024;
    constexpr std::size_t kShared = Config::kIsAlone ? std::max(kStorage, kMoreThanHalfOfShared) : kStorage;
    static_assert(Config::kCtasPerSm * (kShared + 1024) <= kSharedOfSm);
    cuda::launch("decode_select", select_kernel<Config>, {ctas, Config::kThreads, kShared}, launch.stream, p, index_k);
  };
  constexpr cute::Int<kDecodeShortList> kShort;
  constexpr cute::Int<2 * kMaxTopk> kLong;
  constexpr cute::Int<kMostDecodeTileRows> kMost;
  if (2 * p.rules.topk > kShort) return start(kMost, kLong, cute::_1{});
  const auto start_short = [&](auto rows) {
    constexpr int kCtasPerSm = index_ctas_per_sm(decltype(rows)::value, kShort / 2, sizeof(Cached) == 1);
    start(rows, kShort, cute::Int<kCtasPerSm>{});
  };
  switch (p.lists.tile_rows) {
    case kDecodeTileRows[0]:
      return start_short(cute::Int<kDecodeTileRows[0]>{});
    case kDecodeTileRows[1]:
      return start_short(cute::Int<kDecodeTileRows[1]>{});
    case kDecodeTileRows[2]:
      return start_short(cute::Int<kDecodeTileRows[2]>{});
    default:
      return start_short(kMost);
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
    constexpr std::size_t kStorage = sizeof(typename Config::Storage) + 1024;
    constexpr std::size_t kShared = Config::kIsQuantized ? kQuantizedAttendShared : kStorage;
    static_assert(kStorage <= kShared);
    static_assert(!Config::kIsGroup || kShared + 1024 + kMoreThanHalfOfShared + 1024 <= kSharedOfSm);
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
  start(AttendConfig<Element<kDtype>, Element<kCached>, kDim, 1>{}, 2);
}

}  // namespace openmsa::cuda::sm90::decode
