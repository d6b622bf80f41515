// From the sums of the steps to loss and gradients.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/generic/training/channels.cuh"
#include "cuda/generic/training/kl/params.h"

namespace openmsa::cuda::generic::training::kl {

inline constexpr int kFinishThreads = 256;
inline constexpr int kLossThreads = 1024;

/// d_index_q of the batch's rows. A row whose figures are NaN is NaN as a whole.
template <class Element>
__global__ void __launch_bounds__(kFinishThreads) index_rows_kernel(const Params p, const GradientRows out) {
  wait_for_earlier_kernels();
  const int pieces = p.index_dim / kLaneChannels;
  const std::int64_t entry = std::int64_t{blockIdx.x} * kFinishThreads + threadIdx.x, place = entry / pieces;
  if (place >= std::int64_t{p.work.heads} * p.work.rows) return;
  const auto head = static_cast<std::int32_t>(place / p.work.rows),
             row = static_cast<std::int32_t>(place % p.work.rows);
  const int channel = static_cast<int>(entry % pieces) * kLaneChannels;
  const std::int32_t q_row = p.work.first_row + row;
  const RowStats stats = p.stats[place];
  float unit = 0;
  if (stats.weight != 0) {
    const float weight = stats.weight * __uint_as_float(*p.maxima.weight);
    unit = isfinite(stats.lse2) ? stats.bound / kFixedOne * weight * p.index_scale : NAN;
  }
  const std::int32_t* const sums = p.d_index_q_sums + place * p.index_dim + channel;
  float x[kLaneChannels];
#pragma unroll
  for (int i = 0; i < kLaneChannels; i += 4) {
    const int4 four = *reinterpret_cast<const int4*>(sums + i);
    x[i] = static_cast<float>(four.x) * unit;
    x[i + 1] = static_cast<float>(four.y) * unit;
    x[i + 2] = static_cast<float>(four.z) * unit;
    x[i + 3] = static_cast<float>(four.w) * unit;
  }
  store_gradient<Element>(out, q_row, p.work.first_head + head, channel, x);
}

/// The batch's share of the loss; one CTA, in the same order every time.
__global__ void __launch_bounds__(kLossThreads) sum_loss_kernel(const Params p) {
  __shared__ double sums[kLossThreads];
  wait_for_earlier_kernels();
  const int num_items = *p.work.num_items, thread = threadIdx.x;
  double sum = 0;
  for (int i = thread; i < num_items; i += kLossThreads) sum += p.item_loss[i];
  sums[thread] = sum;
  for (int half = kLossThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) *p.loss += sums[0];
}

__global__ void write_loss_kernel(const Params p, float* kl_loss) {
  wait_for_earlier_kernels();
  *kl_loss = static_cast<float>(*p.loss * static_cast<double>(__uint_as_float(*p.maxima.weight)) / kLog2E);
}

/// d_index_k of all keys: the sum over the KV heads whose sums there are. Keys that nobody chose have sums of zero.
template <class Element>
__global__ void __launch_bounds__(kFinishThreads)
    index_keys_kernel(const Params p, const GradientRows out, std::int32_t heads, float gradient_scale) {
  wait_for_earlier_kernels();
  const int pieces = p.index_dim / kLaneChannels;
  const std::int64_t entry = std::int64_t{blockIdx.x} * kFinishThreads + threadIdx.x, key = entry / pieces;
  if (key >= p.batch.total_k) return;
  const int channel = static_cast<int>(entry % pieces) * kLaneChannels;
  const float unit = p.index_scale * __uint_as_float(*p.maxima.weight) / gradient_scale;
  float sum[kLaneChannels] = {};
  for (int head = 0; head < heads; ++head) {
    float x[kLaneChannels];
    load_channels(p.d_index_k_sums + (std::int64_t{head} * p.batch.total_k + key) * p.index_dim + channel, x);
#pragma unroll
    for (int i = 0; i < kLaneChannels; ++i) sum[i] += x[i];
  }
#pragma unroll
  for (float& x : sum) x *= unit;
  store_gradient<Element>(out, key, 0, channel, sum);
}

}  // namespace openmsa::cuda::generic::training::kl
