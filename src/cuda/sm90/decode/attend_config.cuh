// Tiles and shared memory of a decode step's attention.
#pragma once

#include "cuda/sm90/decode/cached_keys.cuh"
#include "cuda/sm90/decode/choose.cuh"
#include "cuda/sm90/decode/query_union.cuh"

namespace openmsa::cuda::sm90::decode {

/// A warp's rows are the heads of one of kQueries_ queries, so that queries see nothing of each other's keys.
template <class Element_, class Cached_, int kDim_, int kQueries_, int kKeySlices_>
struct AttendConfig {
  using Element = Element_;
  using Cached = Cached_;
  static constexpr int kDim = kDim_;
  static constexpr int kQueries = kQueries_;
  static constexpr int kKeySlices = kKeySlices_;
  static constexpr bool kIsQuantized = sizeof(Cached) == 1;
  static constexpr bool kIsDense = false;  // key tiles are those of chosen kv_blocks

  static constexpr int kRows = 16 * kQueries;
  static constexpr int kSliceKeys = kTileKeys / kKeySlices;
  static constexpr int kChunkKeys = kSliceKeys < 32 ? kSliceKeys : 32;  // whose scores fit in registers
  static constexpr int kConsumers = kQueries * kKeySlices;              // warps
  static constexpr int kThreads = 32 * (kConsumers + 1);
  // A quarter of an SM holds two warps of 160 registers beside two of the index branch's 96, or three of 168.
  static constexpr int kMaxRegisters = kQueries == 1 ? 160 : 168;
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Cached));
  static constexpr int kStages = 3;
  static constexpr int kPartialStride = kDim + 8;  // four rows side by side differ in their banks
  using Keys = CachedKeys<Element, Cached, kTileKeys, kDim>;
  using Tile = typename Keys::Tile;

  struct Stage {
    alignas(1024) char k[kTileKeys * kRowBytes];
    alignas(1024) char v[kTileKeys * kRowBytes];
  };
  static constexpr int kVectors = kDim / 4;
  /// Vectors of a row over all CTAs of a cluster, where each has as many as the first.
  static constexpr int kMaxSharedVectors = kVectors + kPortableClusterCtas - 1;
  /// Results of this CTA's warps.
  struct Partial {
    float max[kKeySlices][kRows];  // base 2
    float sum[kKeySlices][kRows];
    alignas(16) float o[kKeySlices][kRows][kPartialStride];
  };
  /// Results of all CTAs of the cluster, for the channels that this one combines.
  struct Received {
    float2 weight[kMaxClusterCtas][kRows];  // max, sum
    float4 o[kRows * kMaxSharedVectors];    // [CTAs][kRows][vectors of a CTA]
    std::uint64_t full;
  };
  using Scratch = ChoiceScratch<kQueries>;
  struct Storage {
    union {
      Scratch scratch;  // before the first stage is loaded
      Stage stages[kStages];
      Partial partial;  // when the last stage has been read
    };
    float k_scale[kStages][kTileKeys];
    float v_scale[kStages][kTileKeys];
    Chosen<kQueries> chosen;
    ScoreBins<kQueries> bins;
    QueryUnion<kQueries> united;  // of several queries
    Received received;
    std::uint64_t full[kStages], empty[kStages];
  };
};

}  // namespace openmsa::cuda::sm90::decode
