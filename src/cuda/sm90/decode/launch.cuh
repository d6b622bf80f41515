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
  if (p.lists.tile_rows == kDecodeTileRows[0]) return start(DecodeSelectConfig<Query, Key, kDim, kDecodeTileRows[0]>{});
  if (p.lists.tile_rows == kDecodeTileRows[1]) return start(DecodeSelectConfig<Query, Key, kDim, kDecodeTileRows[1]>{});
  start(DecodeSelectConfig<Query, Key, kDim, kDecodeTileRows[2]>{});
}

/// Blocks of the next smaller cluster: powers of two, with several queries any number up to the portable one.
inline unsigned int smaller_cluster(unsigned int blocks, int queries) {
  return queries > 1 && blocks <= kPortableClusterBlocks ? blocks - 1 : blocks / 2;
}

template <class Element, class Cached, int kDim>
void launch_decode_attend(const DecodeAttendParams& p, const CUtensorMap& k, const CUtensorMap& v, Launch launch) {
  const auto clusters = static_cast<unsigned int>(p.select.heads) *
                        ((p.select.batch.total_q + p.cluster_queries - 1) / p.cluster_queries);
  const auto start = [&](auto config, unsigned int blocks_per_sm) {
    using Config = decltype(config);
    constexpr std::size_t kShared = sizeof(typename Config::Storage) + 1024;
    // Clusters as large as all of them run at once: a second round would take as long as the first. A cluster has to
    // find room in one part of the card, so that fewer fit than the number of SMs suggests.
    const auto run_at_once = [&](unsigned int size) {
      if (clusters * size > launch.num_sms * (size <= 2 ? blocks_per_sm : 1)) return false;
      return size <= 2 || active_clusters(decode_attend_kernel<Config>, {size, Config::kThreads, kShared, size}) >=
                              static_cast<int>(clusters);
    };
    unsigned int size = kMaxClusterBlocks;
    while (size > 1 && !run_at_once(size)) size = smaller_cluster(size, Config::kQueries);
    cuda::launch("decode_attend", decode_attend_kernel<Config>, {clusters * size, Config::kThreads, kShared, size},
                 launch.stream, p, k, v);
  };
  if (p.cluster_queries == 1) {
    start(DecodeAttendConfig<Element, Cached, kDim, 1, 4>{}, 2);
  } else {
    start(DecodeAttendConfig<Element, Cached, kDim, kClusterQueries, 2>{}, 1);
  }
}

}  // namespace openmsa::cuda::sm90
