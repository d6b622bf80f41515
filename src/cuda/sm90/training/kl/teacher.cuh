// The teacher's probabilities: P[key][query] = sum over the group's heads of exp2(s * scale_log2 - lse2), where lse2
// holds the group size too.
//
// The rows of 16 queries are worked on in 1, 2 or 4 chunks of 64 rows. A thread of s^T holds 16 of a chunk's rows for
// each of two keys. Which query lies in which rows is chosen so that the sums over heads leave each lane of a quad with
// the queries that it holds of the student's products: columns {2 l, 2 l + 1, 8 + 2 l, 9 + 2 l}, its queries 0 to 3.
#pragma once

#include "cuda/common/math.h"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/training/kl/tile.cuh"

namespace openmsa::cuda::sm90::training::kl {

/// Where the rows of a step's query lie.
struct TeacherPlace {
  int chunk;
  int row;  // of the chunk: the first, of group_size
};

/// Place of query `column` of a step. Lane `lane` of the quads sums up its query `own`.
template <int kChunks>
__device__ __forceinline__ TeacherPlace teacher_place(int column) {
  const int lane = column % 8 / 2, own = column / 8 * 2 + column % 2;
  if constexpr (kChunks == 4) return {own, 16 * lane};
  if constexpr (kChunks == 2) return {own / 2, 8 * (2 * lane + own % 2)};
  return {0, 8 * (4 * (lane % 2) + own) + 4 * (lane / 2)};
}

/// Adds up over two lanes `distance` apart: the one with that bit keeps the sums of the upper half of x, the other one
/// those of the lower half.
template <int kCount>
__device__ __forceinline__ void add_halves(float (&x)[kCount], int lane, int distance) {
  const bool upper = lane & distance;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float kept = upper ? x[kCount / 2 + i] : x[i], given = upper ? x[i] : x[kCount / 2 + i];
    x[i] = kept + __shfl_xor_sync(kFullWarp, given, distance);
  }
}

/// Probabilities of a chunk: p[key][i], i < 4 / kChunks, of the thread's queries 4 / kChunks * chunk + i.
template <int kChunks, class Scores>
__device__ __forceinline__ void sum_over_heads(const Scores& s, const float* lse2, float scale_log2, int lane,
                                               float (&p)[2][4 / kChunks]) {
  using namespace cute;
  constexpr int kColumns = kChunkRows / 8, kMerged = kChunks == 4 ? 2 : 1;  // groups of 8 columns; those of a query
  float sums[2][kColumns / kMerged];
  CUTE_UNROLL
  for (int n = 0; n < kColumns; ++n) {
    const float2 shift = *reinterpret_cast<const float2*>(&lse2[8 * n + 2 * (lane % 4)]);
    CUTE_UNROLL
    for (int key = 0; key < 2; ++key) {
      const float x = exp2_approx(fmaf(s(make_coord(0, key, n), 0, 0), scale_log2, -shift.x));
      const float y = exp2_approx(fmaf(s(make_coord(1, key, n), 0, 0), scale_log2, -shift.y));
      float& sum = sums[key][n / kMerged];
      sum = n % kMerged == 0 ? x + y : sum + (x + y);
    }
  }
  CUTE_UNROLL
  for (int key = 0; key < 2; ++key) {
    if constexpr (kChunks == 1) {
      add_halves(sums[key], lane, 1);
    } else {
      add_halves(sums[key], lane, 2);
      float half[kColumns / kMerged / 2];
      CUTE_UNROLL
      for (int i = 0; i < kColumns / kMerged / 2; ++i) half[i] = sums[key][i];
      add_halves(half, lane, 1);
      CUTE_UNROLL
      for (int i = 0; i < 4 / kChunks; ++i) sums[key][i] = half[i];
    }
    CUTE_UNROLL
    for (int i = 0; i < 4 / kChunks; ++i) p[key][i] = sums[key][i];
  }
}

}  // namespace openmsa::cuda::sm90::training::kl
