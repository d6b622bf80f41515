// Tiles and shared memory of a decode step's attention.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/sm90/decode/cached_keys.cuh"
#include "cuda/sm90/decode/choose.cuh"
#include "cuda/sm90/decode/group_operands.cuh"
#include "cuda/sm90/decode/query_union.cuh"
#include "cuda/sm90/heuristics.h"
#include "cuda/sm90/tile/pipeline.cuh"

namespace openmsa::cuda::sm90::decode {

/// Vectors of a row over all CTAs of a cluster of any size, where each has as many as the first.
constexpr int most_shared_vectors(int vectors) {
  std::int64_t most = vectors;
  for (unsigned int ctas = kMaxClusterCtas; ctas > 1; ctas = smaller_cluster(ctas)) {
    most = std::max(most, ctas * covering(vectors, ctas));
  }
  return static_cast<int>(most);
}

/// One query has a warpgroup (group_attention.cuh). Of several, each has warps of its own, for kKeySlices_ slices of a key
/// tile, and the rows of a warp are its heads (warp_attention.cuh): queries see nothing of each other's keys.
template <class Element_, class Cached_, int kDim_, int kQueries_, int kKeySlices_ = 1>
struct AttendConfig {
  using Element = Element_;
  using Cached = Cached_;
  static constexpr int kDim = kDim_;
  static constexpr int kQueries = kQueries_;
  static constexpr int kKeySlices = kKeySlices_;
  static constexpr bool kIsGroup = kQueries == 1;
  static_assert(!kIsGroup || kKeySlices == 1);
  static constexpr bool kIsQuantized = sizeof(Cached) == 1;
  static constexpr bool kIsDense = false;  // key tiles are those of chosen kv_blocks

  static constexpr int kRows = 16 * kQueries;
  static constexpr int kSliceKeys = kTileKeys / kKeySlices;
  static constexpr int kChunkKeys = kSliceKeys < 32 ? kSliceKeys : 32;  // whose scores fit in registers
  static constexpr int kConsumers = kIsGroup ? kGroupThreads / 32 : kQueries * kKeySlices;  // warps
  static constexpr int kThreads = 32 * (kConsumers + 1);
  // A quarter of an SM holds two warps of 160 registers beside two of the index branch's 96, or three of 168.
  static constexpr int kMaxRegisters = kIsGroup ? 160 : 168;
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Cached));
  static constexpr int kStages = 3;
  using Keys = CachedKeys<Element, Cached, kTileKeys, kDim>;
  using Operands = GroupOperands<Element, Cached, kDim>;
  using Tile = typename Keys::Tile;

  struct Stage {  // in multiples of 1024 bytes
    char k[kTileKeys * kRowBytes];
    char v[kTileKeys * kRowBytes];
  };
  static constexpr int kVectors = kDim / 4;
  static constexpr int kPartialStride = kDim + (kIsGroup ? 4 : 8);  // rows that are written at once differ in their banks
  /// Results of this CTA's warps.
  struct Partial {
    static constexpr int kSums = kIsGroup ? kConsumers : 1;  // of a slice
    float max[kKeySlices][kRows];                            // base 2
    float sum[kKeySlices * kSums][kRows];
    alignas(16) float o[kKeySlices][kRows][kPartialStride];

    __device__ __forceinline__ float total(int slice, int row) const {
      float result = sum[slice * kSums][row];
#pragma unroll
      for (int i = 1; i < kSums; ++i) result += sum[slice * kSums + i][row];
      return result;
    }
  };
  /// Results of all CTAs of the cluster, for the channels that this one combines.
  struct Received {
    float2 weight[kMaxClusterCtas][kRows];          // max, sum
    float4 o[kRows * most_shared_vectors(kVectors)];  // [CTAs][kRows][vectors of a CTA]
    std::uint64_t full;
  };
  using Scratch = ChoiceScratch<kQueries>;
  using Group = std::conditional_t<kIsGroup, GroupScratch<Operands>, Nothing>;
  using Union = std::conditional_t<kIsGroup, Nothing, QueryUnion<kQueries>>;
  static constexpr int kScaleStages = kIsQuantized ? kStages : 1;
  struct Storage {  // on a 1024-byte boundary
    union {
      Scratch scratch;  // before the first stage is loaded
      Stage stages[kStages];
      Partial partial;  // when the last stage has been read
    };
    Group group;
    float k_scale[kScaleStages][kIsQuantized ? kTileKeys : 1];
    float v_scale[kScaleStages][kIsQuantized ? kTileKeys : 1];
    Chosen<kQueries> chosen;
    Union united;
    Received received;
    std::uint64_t full[kStages], empty[kStages];

    /// The kv_blocks of all queries, and how many.
    __device__ __forceinline__ const std::int32_t* blocks() const {
      if constexpr (kIsGroup) {
        return chosen.blocks[0];
      } else {
        return united.blocks;
      }
    }
    __device__ __forceinline__ std::int32_t block_count() const {
      if constexpr (kIsGroup) {
        return chosen.counts[0];
      } else {
        return united.count;
      }
    }
  };
};

}  // namespace openmsa::cuda::sm90::decode
