// Tiles, shared memory and roles of q_outer.
#pragma once

#include "cuda/sm90/prefill/cached_tile.cuh"
#include "cuda/sm90/prefill/params.h"
#include "cuda/sm90/tile/attention_tile.cuh"

namespace openmsa::cuda::sm90::prefill {

/// Named barriers of the table in q_outer.cuh.
enum class QOuterBarrier {
  kWarpgroup = 1,    // and 2: of each warpgroup
  kTailCleared = 3,  // of both
  kTurn = 4,         // and 5: of each warpgroup
};

/// A tile of the schedule batch with the work that the schedule gave it, put beside its queries by the producer.
struct QOuterTile {
  QueryTile queries;
  std::int32_t number;  // of the schedule batch
  std::int32_t num_shared;
  std::int32_t most_slots;                    // of the query with most of them
  std::int32_t slot_counts[kMaxTileQueries];  // 0 after the last query
};

/// The shared blocks of the schedule batch's tile `number`.
__device__ __forceinline__ const SharedBlock* shared_of_tile(const AttendParams& p, int number) {
  return p.work.shared + static_cast<std::int64_t>(number) * p.work.tile_queries * p.topk;
}

/// Slot 0 of the first query of tile `number`, counted over the schedule batch; then slot 0 of the second one.
__device__ __forceinline__ std::int64_t first_slot_of_tile(const AttendParams& p, int number) {
  return static_cast<std::int64_t>(number) * p.work.slots * p.work.tile_queries;
}

/// Scales of a kv_block's e4m3 keys and values, where tokens have one each.
template <int kBlock>
struct QOuterScales {
  alignas(16) float k[kBlock];
  float v_unit;  // the tile's largest so far
};

/// Cached_: element type of k and v in memory.
template <class Element, class Cached_, int kDim, int kBlock>
struct QOuterConfig {
  using Cached = Cached_;
  using Tile = CachedTile<Element, Cached, kDim, kBlock>;
  static constexpr bool kIsQuantized = sizeof(Cached) == 1;
  static constexpr int kConsumers = 2;
  static constexpr int kProducerGroups = kIsQuantized ? 2 : 1;  // warpgroups, the first and the last one
  static constexpr int kWideners = kIsQuantized ? 6 : 0;        // warps of them
  static constexpr int kThreads = 128 * (kConsumers + kProducerGroups);
  static constexpr int kStages = 5;
  static constexpr int kQueryStages = 2;
  static constexpr int kStageRows = kConsumers * kWarpgroupRows;  // a kv_block, or one slot of all rows
  static constexpr int kStageElements = cute::max(kStageRows * kDim, cached_tile_elements<Cached, kDim, kBlock>());
  static constexpr int kFullArrivals = kIsQuantized ? kWideners : 1;
  // Scales are in use from the load of a k to the release of its v: of five tiles in flight three are k at most.
  static constexpr int kScaleStages = (kStages + 1) / 2;

  struct WidenStorage {
    QOuterScales<kBlock> scales[kScaleStages];
    std::uint64_t raw_full[kStages];
  };
  struct Storage {
    alignas(1024) Element q[kQueryStages][kConsumers][kWarpgroupRows * kDim];
    alignas(1024) Element ring[kStages][kStageElements];
    QOuterTile tiles[kQueryStages];
    std::uint64_t full[kStages], empty[kStages], q_full[kQueryStages], q_empty[kQueryStages];
    std::conditional_t<kIsQuantized, WidenStorage, Nothing> widen;
  };
  static constexpr std::size_t kSharedBytes = shared_bytes<Cached, Storage>();
  static_assert(kSharedBytes <= 227 << 10);
};

__device__ __forceinline__ int tiles_of_work(const AttendParams& p) {
  return max(0, min(p.work.max_tiles, p.index.tiles[p.batch.batch + 1] - p.work.first_tile));
}

}  // namespace openmsa::cuda::sm90::prefill
