// Attention from its parts over different keys:
//
//   lse = log sum_s exp(partial_lse[s]),   o = sum_s exp(partial_lse[s] - lse) * partial_o[s],   s ascending.
//
// A thread has four channels of a query and head; those of one row read the same log-sum-exps.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/generic/shards/params.h"

namespace openmsa::cuda::generic {

inline constexpr int kPartialThreads = 128, kPartialChannels = 4;

template <class Element>
struct alignas(kPartialChannels * sizeof(Element)) Channels {
  Element of[kPartialChannels];
};

/// A part with a log-sum-exp of -inf counts nothing, whatever its o; NaN and +inf make the sum NaN.
template <class Part>
struct MergedChannels {
  float o[kPartialChannels] = {};
  float max = -INFINITY;
  float sum = 0;
  bool is_empty = true;

  __device__ __forceinline__ MergedChannels(const MergePartialsParams& p, std::int64_t row, std::int64_t head,
                                            std::int64_t channel) {
    const float* const lse = p.partial_lse + row * p.lse_strides[1] + head * p.lse_strides[2];
    const Part* const from =
        static_cast<const Part*>(p.partial_o) + row * p.o_strides[1] + head * p.o_strides[2] + channel;
    for (std::int32_t s = 0; s < p.shards; ++s) max = fmaxf(max, lse[s * p.lse_strides[0]]);
    for (std::int32_t s = 0; s < p.shards; ++s) {
      const float of_part = lse[s * p.lse_strides[0]];
      if (of_part == -INFINITY) continue;
      const float weight = expf(of_part - max);
      const auto part = *reinterpret_cast<const Channels<Part>*>(from + s * p.o_strides[0]);
#pragma unroll
      for (int c = 0; c < kPartialChannels; ++c) o[c] += weight * static_cast<float>(part.of[c]);
      sum += weight;
      is_empty = false;
    }
  }
};

template <class Part, class Result>
__global__ void __launch_bounds__(kPartialThreads)
    merge_partials_kernel(const __grid_constant__ MergePartialsParams p) {
  wait_for_earlier_kernels();
  let_next_kernel_start();
  const std::int32_t per_row = p.head_dim / kPartialChannels;
  const std::int64_t number = std::int64_t{blockIdx.x} * kPartialThreads + threadIdx.x, place = number / per_row;
  const std::int64_t row = place / p.heads, head = place % p.heads, channel = number % per_row * kPartialChannels;
  if (row >= p.batch.total_q) return;
  Channels<Result> o{};
  float lse = -INFINITY;
  const IntVector offsets = p.batch.cu_seqlens_q;
  if (offsets.data == nullptr || row < offsets.at(p.batch.batch)) {  // else it is of no sequence
    const MergedChannels<Part> merged(p, row, head, channel);
    if (!merged.is_empty) {
      const float scale = 1 / merged.sum;
#pragma unroll
      for (int c = 0; c < kPartialChannels; ++c) o.of[c] = static_cast<Result>(merged.o[c] * scale);
      lse = merged.max + logf(merged.sum);
    }
  }
  auto* const to = static_cast<Result*>(p.out.o) + row * p.out.o_strides[0] + head * p.out.o_strides[1] + channel;
  *reinterpret_cast<Channels<Result>*>(to) = o;
  if (channel == 0 && p.out.lse != nullptr) p.out.lse[row * p.out.lse_strides[0] + head * p.out.lse_strides[1]] = lse;
}

}  // namespace openmsa::cuda::generic
