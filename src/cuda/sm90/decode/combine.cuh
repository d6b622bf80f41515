// Partial results of a cluster's warps and CTAs, put together:
//
//   o = sum_i 2^(max_i - max) o_i / sum_i 2^(max_i - max) sum_i,   lse = ln 2 (max + log2(sum)),
//
// i over slices and CTAs.
//
// Every CTA sums its own slices and sends the sum, channel by channel, to the CTA that combines those channels,
// whose barrier counts what has arrived.
#pragma once

#include <cooperative_groups.h>
#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>

#include "cuda/common/math.h"
#include "cuda/sm90/decode/tile_scheduler.cuh"
#include "cuda/sm90/ptx/async_copy.cuh"
#include "cuda/sm90/tile/pipeline.cuh"
#include "cuda/sm90/tile/softmax.cuh"

namespace openmsa::cuda::sm90::decode {

/// How a row's vectors of 4 channels are shared out over the CTAs of a cluster: `count` each, fewer for the last
/// ones.
struct ChannelShare {
  int count;
  int inverse;  // of count, in units of 2^-20: exact below 2^12 rows and vectors

  __device__ __forceinline__ ChannelShare(int vectors, int ctas)
      : count((vectors + ctas - 1) / ctas), inverse((1 << 20) / count + 1) {}
  /// x / count
  __device__ __forceinline__ int divide(int x) const { return x * inverse >> 20; }
  /// Vectors of one CTA.
  __device__ __forceinline__ int count_of(int cta, int vectors) const {
    return max(0, min(count, vectors - cta * count));
  }
};

/// Announces what the CTAs of the cluster will send to this one; one thread calls it. A CTA alone sends nothing:
/// st.async is for clusters only.
template <class Config>
__device__ __forceinline__ void expect_partials(typename Config::Received& received, const ChannelShare& share,
                                                int rows) {
  const auto cluster = cooperative_groups::this_cluster();
  if (cluster.num_blocks() == 1) return;
  const int vectors = share.count_of(static_cast<int>(cluster.block_rank()), Config::kVectors);
  const int row_bytes = vectors == 0 ? 0 : static_cast<int>(vectors * sizeof(float4) + sizeof(float2));
  FullBarrier::arrive_and_expect_tx(&received.full, static_cast<int>(cluster.num_blocks()) * rows * row_bytes);
}

/// Waits for what expect_partials announced.
template <class Config>
__device__ __forceinline__ void await_partials(typename Config::Received& received, std::uint32_t phase) {
  if (cooperative_groups::this_cluster().num_blocks() == 1) {
    __syncthreads();
  } else {
    FullBarrier::wait(&received.full, phase);
  }
}

/// Sends the sum of this CTA's slices to where it is combined: every CTA of the cluster has some channels. A thread takes
/// vectors of one row, so that it weighs the slices once.
template <class Config>
__device__ __forceinline__ void send_partial(const typename Config::Partial& partial,
                                             typename Config::Received& received, const ChannelShare& share, int rows) {
  constexpr int kSlices = Config::kKeySlices, kThreadsOfRow = 8;
  static_assert(Config::kThreads % kThreadsOfRow == 0 && Config::kVectors % kThreadsOfRow == 0);
  const auto cluster = cooperative_groups::this_cluster();
  const int rank = static_cast<int>(cluster.block_rank());
  const bool is_alone = cluster.num_blocks() == 1;
#pragma unroll 1
  for (int row = threadIdx.x / kThreadsOfRow; row < rows; row += Config::kThreads / kThreadsOfRow) {
    float weight[kSlices], top = -INFINITY, total = 0;
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) top = fmaxf(top, weight[slice] = partial.max[slice][row]);
    const float shift = finite_shift(top);
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      weight[slice] = exp2_approx(weight[slice] - shift);
      total += weight[slice] * partial.total(slice, row);
    }
#pragma unroll
    for (int i = 0; i < Config::kVectors / kThreadsOfRow; ++i) {
      const int vector = threadIdx.x % kThreadsOfRow + i * kThreadsOfRow;
      const int owner = share.divide(vector), within = vector - owner * share.count;
      float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
        const float4 o = *reinterpret_cast<const float4*>(&partial.o[slice][row][vector * 4]);
        sum.x += weight[slice] * o.x;
        sum.y += weight[slice] * o.y;
        sum.z += weight[slice] * o.z;
        sum.w += weight[slice] * o.w;
      }
      float4* const place = &received.o[(rank * Config::kRows + row) * share.count + within];
      float2* const weight_place = &received.weight[rank][row];
      if (is_alone) {
        *place = sum;
        if (within == 0) *weight_place = make_float2(top, total);
      } else {
        const RemoteMemory to{static_cast<std::uint32_t>(owner), &received.full};
        to.store(place, sum);
        if (within == 0) to.store(weight_place, make_float2(top, total));
      }
    }
  }
}

/// Combines this CTA's channels of all rows, four at a time, from what the cluster has sent.
template <class Config>
__device__ __forceinline__ void combine_cluster(const AttendParams& p, const typename Config::Received& received,
                                                const ChannelShare& share, const QueryPart& part, std::int32_t head) {
  const auto cluster = cooperative_groups::this_cluster();
  const int ctas = static_cast<int>(cluster.num_blocks()), rank = static_cast<int>(cluster.block_rank());
  for (int item = threadIdx.x; item < (part.count << p.log2_group_size) * share.count; item += Config::kThreads) {
    const int query_and_head = share.divide(item), vector = item - query_and_head * share.count;
    if (rank * share.count + vector >= Config::kVectors) continue;  // the last CTAs have fewer
    const int query = query_and_head >> p.log2_group_size;
    const int head_of_group = query_and_head & ((1 << p.log2_group_size) - 1), row = query * 16 + head_of_group;
    float top = -INFINITY, total = 0, sum[4] = {};
#pragma unroll 8
    for (int cta = 0; cta < ctas; ++cta) top = fmaxf(top, received.weight[cta][row].x);
    const float shift = finite_shift(top);
#pragma unroll 8
    for (int cta = 0; cta < ctas; ++cta) {
      const float2 max_and_sum = received.weight[cta][row];
      const float weight = exp2_approx(max_and_sum.x - shift);
      const float4 o = received.o[(cta * Config::kRows + row) * share.count + vector];
      total += weight * max_and_sum.y;
      sum[0] += weight * o.x;
      sum[1] += weight * o.y;
      sum[2] += weight * o.z;
      sum[3] += weight * o.w;
    }
    const float inverse = 1 / total;
    const std::int64_t token = part.row + query, query_head = (head << p.log2_group_size) + head_of_group;
    cutlass::Array<float, 4> scaled;
#pragma unroll
    for (int i = 0; i < 4; ++i) scaled[i] = total == 0 ? 0 : sum[i] * inverse;
    const std::int64_t to =
        token * p.out.o_strides[0] + query_head * p.out.o_strides[1] + (rank * share.count + vector) * 4;
    if (p.out.is_fp32) {
      *reinterpret_cast<float4*>(static_cast<float*>(p.out.o) + to) = reinterpret_cast<const float4&>(scaled);
    } else {
      const cutlass::NumericArrayConverter<typename Config::Element, float, 4> convert;
      const auto rounded = convert(scaled);
      *reinterpret_cast<uint2*>(static_cast<typename Config::Element*>(p.out.o) + to) =
          reinterpret_cast<const uint2&>(rounded);
    }
    if (rank == 0 && vector == 0 && p.out.lse != nullptr) {
      p.out.lse[token * p.out.lse_strides[0] + query_head * p.out.lse_strides[1]] =
          total == 0 ? -INFINITY : (top + log2f(total)) * kLn2;
    }
  }
}

}  // namespace openmsa::cuda::sm90::decode
