// From the probabilities of a tile, keys x (query, head) rows, to their means over the heads of each query.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cutlass/arch/barrier.h>

#include <cute/tensor.hpp>

#include "cuda/common/math.h"
#include "cuda/sm90/training/backward_tile.cuh"
#include "cuda/sm90/training/params.h"

namespace openmsa::cuda::sm90::training {

/// Adds up over two lanes `distance` apart: the one with that bit keeps the sums of the upper half of x, the other one
/// those of the lower half; both in the lower half of their x.
template <int kCount, int kSize>
__device__ __forceinline__ void add_halves(float (&x)[kSize], int lane, int distance) {
  const bool upper = lane & distance;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float kept = upper ? x[kCount / 2 + i] : x[i], given = upper ? x[i] : x[kCount / 2 + i];
    x[i] = kept + __shfl_xor_sync(kFullWarp, given, distance);
  }
}

/// Sums of a thread's two keys and 16 columns of a tile of 64, 8 n + 2 (lane % 4) + c, over the 2^kShift columns that
/// belong to one query: those that the thread holds, then between the lanes of a quad, which leaves each lane with kCount
/// queries.
template <int kShift>
class GroupSums {
 public:
  static constexpr bool kExchanges = kShift >= 3;  // more than once

  GroupSums() = default;

  /// Of the thread alone.
  template <class Scores>
  __device__ __forceinline__ explicit GroupSums(const Scores& p) {
    using namespace cute;
    CUTE_UNROLL
    for (int key = 0; key < 2; ++key) {
      CUTE_UNROLL
      for (int i = 0; i < kOwn; ++i) {
        const auto at = [&](int column, int n) { return p(make_coord(column, key, n), 0, 0); };
        if constexpr (kShift == 0) {
          of_[key][i] = at(i % 2, i / 2);
        } else if constexpr (kShift == 4) {
          of_[key][i] = (at(0, 2 * i) + at(1, 2 * i)) + (at(0, 2 * i + 1) + at(1, 2 * i + 1));
        } else {
          of_[key][i] = at(0, i) + at(1, i);
        }
      }
    }
  }

  /// Adds up between lanes and writes the means. `to`: the thread's keys of the tile's first query; `count`: its queries.
  __device__ __forceinline__ void store(std::uint16_t* to, std::int64_t stride, int count, int lane) {
    constexpr float kFactor = kTeacherOne / (1 << kShift);
#pragma unroll
    for (float(&sums)[kOwn] : of_) {
      if constexpr (kShift >= 3) add_halves<kOwn>(sums, lane, 2);
      if constexpr (kShift >= 3) add_halves<kOwn / 2>(sums, lane, 1);
      if constexpr (kShift == 2) add_halves<kOwn>(sums, lane, 1);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (query(i, lane) >= count) continue;
      *reinterpret_cast<__half2*>(to + query(i, lane) * stride) =
          __floats2half2_rn(of_[0][i] * kFactor, of_[1][i] * kFactor);
    }
  }

 private:
  static constexpr int kOwn = kShift == 4 ? 4 : kShift == 0 ? 16 : 8;
  static constexpr int kCount = kShift >= 3 ? kOwn / 4 : kShift == 2 ? kOwn / 2 : kOwn;

  /// The query of the lane's sum `i`.
  static __device__ __forceinline__ int query(int i, int lane) {
    const int quad = lane % 4;
    if constexpr (kShift == 4) return quad;
    if constexpr (kShift == 3) return 2 * quad + i;
    if constexpr (kShift == 2) return 2 * (quad % 2 * 4 + i) + quad / 2;
    if constexpr (kShift == 1) return 4 * i + quad;
    return i / 2 * 8 + 2 * quad + i % 2;
  }

  float of_[2][kOwn];  // then the first kCount
};

/// Calls work(GroupSums<shift>()) for groups of 2^shift heads; of a tile with more than kLeastQueries queries.
template <int kLeastQueries, class Work>
__device__ __forceinline__ void with_group_sums(int shift, const Work& work) {
  if constexpr (kTileRows >> 4 > kLeastQueries) {
    if (shift == 4) return work(GroupSums<4>());
  }
  if constexpr (kTileRows >> 3 > kLeastQueries) {
    if (shift == 3) return work(GroupSums<3>());
  }
  if (shift == 2) return work(GroupSums<2>());
  if (shift == 1) return work(GroupSums<1>());
  work(GroupSums<0>());
}

/// Weights of a product over rows that gives the means of up to eight queries: [query][row] = kTeacherOne / 2^shift where
/// the row is a head of the query. For all threads of a CTA, which have to meet after it.
template <class Tile, int kThreads>
__device__ __forceinline__ void fill_mean_weights(typename Tile::Element* weights, int shift) {
  using namespace cute;
  const Tensor all = make_tensor(make_smem_ptr(weights), typename Tile::LayoutMeans{});
  for (int i = threadIdx.x; i < Tile::kMeans * kTileRows; i += kThreads) {
    const int query = i / kTileRows, row = i % kTileRows;
    all(query, row) = typename Tile::Element(row >> shift == query ? kTeacherOne / (1 << shift) : 0.0F);
  }
  cutlass::arch::fence_view_async_shared();
}

/// Before that product: what is no probability, NaN too, becomes 2, so that queries do not meet each other's as 0 * NaN.
template <class Element, class Operand>
__device__ __forceinline__ void bound_probabilities(Operand& p) {
  using namespace cute;
  using Two = cute::conditional_t<cute::is_same_v<Element, cutlass::half_t>, __half2, __nv_bfloat162>;
  CUTE_UNROLL
  for (int i = 0; i < size(p) / 2; ++i) {
    Two& two = reinterpret_cast<Two*>(&p(0))[i];
    if constexpr (cute::is_same_v<Element, cutlass::half_t>) {
      two = __hmin2(two, __float2half2_rn(2));
    } else {
      two = __hmin2(two, __float2bfloat162_rn(2));
    }
  }
}

/// Writes such means, of a thread's two keys and queries 2 (lane % 4) + {0, 1}.
template <class Means>
__device__ __forceinline__ void store_means(const Means& means, std::uint16_t* to, int count, int lane) {
  using namespace cute;
  CUTE_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int query = 2 * (lane % 4) + i;
    if (query < count) {
      *reinterpret_cast<__half2*>(to + query * kTileKeys) =
          __floats2half2_rn(means(make_coord(i, 0, 0), 0, 0), means(make_coord(i, 1, 0), 0, 0));
    }
  }
}

/// Where a thread's two keys lie in a visit, `key` the first of them.
__device__ __forceinline__ int key_pair(int key) { return key / 16 * 16 + key % 8 * 2; }

}  // namespace openmsa::cuda::sm90::training
