// From a warpgroup's accumulator to o and lse in memory.
#pragma once

#include <cutlass/arch/barrier.h>

#include "cuda/common/math.h"
#include "cuda/common/tensor_view.h"
#include "cuda/sm90/ptx/math.cuh"
#include "cuda/sm90/tile/attention_tile.cuh"
#include "cuda/sm90/tile/named_barrier.cuh"
#include "cuda/sm90/tile/softmax.cuh"

namespace openmsa::cuda::sm90 {

/// What a warpgroup's rows are: those of `queries` query rows from q_row on, for each the heads of one KV head.
struct OutputTile {
  std::int32_t q_row;
  std::int32_t queries;     // none where it is negative
  std::int32_t first_head;  // query head
  std::int32_t log2_group_size;
};

/// lse of a thread's two rows.
template <class Tile>
__device__ __forceinline__ void write_lse(const OutputRows& out, const OutputTile& at, const Softmax& softmax,
                                          int thread) {
  const int lane = thread % 32, group = 1 << at.log2_group_size;
  for (int i = 0; i < 2; ++i) {
    const int row = thread / 32 * 16 + i * 8 + lane / 4, query = row >> at.log2_group_size;
    const float sum = quad_sum(softmax.sum[i]);
    if (out.lse == nullptr || query >= at.queries || lane % 4 != 0) continue;
    const int head = at.first_head + (row & (group - 1));
    out.lse[std::int64_t{at.q_row + query} * out.lse_strides[0] + head * out.lse_strides[1]] =
        sum == 0 ? -INFINITY : softmax.max[i] * kLn2 + logf(sum);
  }
}

/// o through shared memory, 16 bytes per thread. `warpgroup`: barrier of its threads.
template <class Tile, class Barrier>
__device__ __forceinline__ void write_values(const OutputRows& out, const OutputTile& at, const Softmax& softmax,
                                             const typename Tile::Values& o, typename Tile::Element* staged, int thread,
                                             Barrier warpgroup) {
  using Element = typename Tile::Element;
  constexpr int kChunks = Tile::kDim / 8;
  const int group = 1 << at.log2_group_size;
  float scale[2];
  for (int i = 0; i < 2; ++i) {
    const float sum = quad_sum(softmax.sum[i]);
    scale[i] = sum == 0 ? 0 : reciprocal_approx(sum);
  }
  Tile::store_values(o, scale[0], scale[1], staged, thread);
  sync(warpgroup, 128);
  auto* const to = static_cast<Element*>(out.o);
  for (int i = thread; i < at.queries * group * kChunks; i += 128) {
    const int row = i / kChunks, channel = i % kChunks * 8;
    const std::int64_t q_row = at.q_row + row / group, head = at.first_head + row % group;
    *reinterpret_cast<uint4*>(to + q_row * out.o_strides[0] + head * out.o_strides[1] + channel) =
        *reinterpret_cast<const uint4*>(staged + Tile::swizzled(kWarpgroupRows, row, channel));
  }
  // The copy engine loads the next queries over what was just read.
  cutlass::arch::fence_view_async_shared();
  sync(warpgroup, 128);
}

}  // namespace openmsa::cuda::sm90
