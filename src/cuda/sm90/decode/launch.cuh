#pragma once

#include "cuda/common/launch.h"
#include "cuda/sm90/decode/attend.cuh"
#include "cuda/sm90/decode/select.cuh"
#include "cuda/sm90/launches.h"

namespace openmsa::cuda::sm90 {

/// Shared memory of which an SM has not got twice as much: all blocks of the index branch have the same work, and every
/// SM is to have one, also where it is busy with the attention of the layer before when they are placed.
inline constexpr std::size_t kMoreThanHalfOfShared = 114 << 10;

template <class Query, class Key, int kDim>
void launch_decode_select(const DecodeSelectParams& p, const CUtensorMap& index_k, Launch launch) {
  const auto start = [&](auto config) {
    using Config = decltype(config);
    const auto blocks = static_cast<unsigned int>(p.lists.blocks);
    constexpr std::size_t kShared = std::max(sizeof(typename Config::Storage) + 1024, kMoreThanHalfOfShared);
    cuda::launch("decode_select", decode_select_kernel<Config>, {blocks, Config::kThreads, kShared}, launch.stream, p,
                 index_k);
  };
  if (p.lists.tile_rows == kDecodeSelectRows) {
    start(DecodeSelectConfig<Query, Key, kDim, kDecodeSelectRows>{});
  } else {
    start(DecodeSelectConfig<Query, Key, kDim, kDecodeSelectFewRows>{});
  }
}

template <class Element, class Cached, int kDim>
void launch_decode_attend(const DecodeAttendParams& p, const CUtensorMap& k, const CUtensorMap& v, Launch launch) {
  const auto clusters = static_cast<unsigned int>(p.select.heads) *
                        ((p.select.batch.total_q + p.cluster_queries - 1) / p.cluster_queries);
  const auto start = [&](auto config, unsigned int blocks_per_sm) {
    using Config = decltype(config);
    // As many blocks as run at once; large clusters do not fit everywhere.
    const auto fits = [&](unsigned int size) {
      return clusters * size <= launch.num_sms * (size <= 2 ? blocks_per_sm : 1);
    };
    constexpr std::size_t kShared = sizeof(typename Config::Storage) + 1024;
    unsigned int size = 1;
    while (size < kPortableClusterBlocks && fits(2 * size)) size *= 2;
    if (fits(kMaxClusterBlocks) && active_clusters(decode_attend_kernel<Config>,
                                                   {kMaxClusterBlocks, Config::kThreads, kShared, kMaxClusterBlocks}) >=
                                       static_cast<int>(clusters)) {
      size = kMaxClusterBlocks;
    }
    cuda::launch("decode_attend", decode_attend_kernel<Config>, {clusters * size, Config::kThreads, kShared, size},
                 launch.stream, p, k, v);
  };
  if (p.cluster_queries == 1) {
    start(DecodeAttendConfig<Element, Cached, kDim, 1, 4>{}, 2);
  } else if (p.cluster_queries <= 4) {
    start(DecodeAttendConfig<Element, Cached, kDim, 4, 2>{}, 1);
  } else {
    start(DecodeAttendConfig<Element, Cached, kDim, kClusterQueries, 1>{}, 1);
  }
}

}  // namespace openmsa::cuda::sm90
