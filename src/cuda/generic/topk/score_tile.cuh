// A tile of a score row in the registers of a warp, 32 scores per lane, and which of them can be among the k best.
#pragma once

#include <cstdint>

#include "cuda/generic/topk/warp_sort.cuh"

namespace openmsa::cuda::generic {

inline constexpr int kTileScores = 1024;
inline constexpr int kLaneScores = 32;

/// kContiguous: rows of stride 1 with 16-byte alignment, read 4 scores at a time.
template <bool kContiguous>
struct ScoreRow {
  const float* data;
  std::int64_t stride;
  std::int32_t begin;  // scores [begin, end) compete; no other is read
  std::int32_t end;

  /// Column of a lane's i-th score within a tile: ascending in i.
  static __device__ __forceinline__ std::int32_t column(int i, int lane) {
    return kContiguous ? (i / 4 * 32 + lane) * 4 + i % 4 : i * 32 + lane;
  }

  /// How many of a lane's scores have a column below `limit`.
  static __device__ __forceinline__ int count_below(std::int32_t limit, int lane) {
    if (!kContiguous) return min(max(limit - lane + 31, 0) / 32, kLaneScores);
    const std::int32_t rest = max(limit - lane * 4, 0);
    return min(rest / 128 * 4 + min(rest % 128, 4), kLaneScores);
  }

  /// Bit i: the lane's i-th score of the tile at `first` competes.
  static __device__ __forceinline__ std::uint32_t low_bits(int count) { return count == 32 ? ~0u : (1u << count) - 1; }
  __device__ __forceinline__ std::uint32_t competing(std::int32_t first, int lane) const {
    return low_bits(count_below(end - first, lane)) & ~low_bits(count_below(begin - first, lane));
  }

  __device__ __forceinline__ float at(std::int32_t column) const {
    return kContiguous ? data[column] : data[column * stride];
  }
  __device__ __forceinline__ float at_or_lowest(std::int32_t column) const {
    return column >= begin && column < end ? at(column) : -INFINITY;
  }

  __device__ __forceinline__ void load(std::int32_t first, int lane, float (&scores)[kLaneScores]) const {
    if constexpr (!kContiguous) {
#pragma unroll
      for (int i = 0; i < kLaneScores; ++i) scores[i] = at_or_lowest(first + column(i, lane));
    } else {
#pragma unroll
      for (int i = 0; i < kLaneScores; i += 4) {
        const std::int32_t from = first + column(i, lane);
        float4 quad = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        if (from >= begin && from + 4 <= end) quad = *reinterpret_cast<const float4*>(data + from);
        scores[i] = quad.x;
        scores[i + 1] = quad.y;
        scores[i + 2] = quad.z;
        scores[i + 3] = quad.w;
      }
      if (begin % 4 != 0 || end % 4 != 0) load_edges(first, lane, scores);
    }
  }

 private:
  /// The quads that `begin` or `end` cuts; apart, so that the whole ones are all in flight at once.
  __device__ __forceinline__ void load_edges(std::int32_t first, int lane, float (&scores)[kLaneScores]) const {
#pragma unroll
    for (int i = 0; i < kLaneScores; i += 4) {
      const std::int32_t from = first + column(i, lane);
      if ((from < begin && from + 4 > begin) || (from < end && from + 4 > end)) {
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[i + c] = at_or_lowest(from + c);
      }
    }
  }
};

/// A score that at least `k` of the warp's scores reach: the k-th best of the lanes' best two (kWide, k <= 64) or one
/// (k <= 32). Of 1024 random scores 22 reach it with k = 16. NaN scores count as -inf.
template <bool kWide>
__device__ __forceinline__ float lower_bound(const float (&scores)[kLaneScores], int k, int lane) {
  float best = -INFINITY, second = -INFINITY;
#pragma unroll
  for (int i = 0; i < kLaneScores; ++i) {
    if (kWide) second = fmaxf(second, scores[i] > best ? best : scores[i]);  // fmaxf drops a NaN, fminf would not
    best = fmaxf(best, scores[i]);
  }
  return kWide ? kth_largest(best, second, k, lane) : kth_largest(best, k, lane);
}

}  // namespace openmsa::cuda::generic
