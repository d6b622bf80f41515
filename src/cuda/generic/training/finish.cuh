// From the backward kernel's sums to gradients.
#pragma once

#include "cuda/common/grid_dependency.cuh"
#include "cuda/generic/training/channels.cuh"

namespace openmsa::cuda::generic::training {

inline constexpr int kFinishThreads = 256;
inline constexpr int kQueryChannels = 16;  // of a thread

/// d_q of the batch's rows, kQueryChannels channels per thread.
template <class Element>
__global__ void __launch_bounds__(kFinishThreads)
    query_gradient_kernel(const BackwardParams p, const GradientRows d_q, float softmax_scale) {
  wait_for_earlier_kernels();
  const int pieces = d_q.head_dim / kQueryChannels, heads = p.work.heads << p.log2_group_size;
  const int entry = blockIdx.x * kFinishThreads + threadIdx.x;
  const int pair = entry / pieces, channel = entry % pieces * kQueryChannels;
  if (pair >= p.work.rows * heads) return;
  const int row = p.work.first_row + pair / heads, head = (p.work.first_head << p.log2_group_size) + pair % heads;
  const int group_size = 1 << p.log2_group_size, h = head & (group_size - 1);
  const std::int64_t place = p.work.place(head >> p.log2_group_size, row);
  const float to_fixed = p.stats.to_fixed[place * group_size + h];
  const float unit = isfinite(to_fixed) ? softmax_scale / to_fixed : NAN;
  const auto* const sums = reinterpret_cast<const int4*>(p.d_q_sums + place * group_size * d_q.head_dim +
                                                         fixed_place(d_q.head_dim, group_size, h, channel));
  float x[kQueryChannels];
#pragma unroll
  for (int lane = 0; lane < 4; ++lane) {  // of the quad that held them
    const int4 four = sums[lane];
    x[2 * lane] = static_cast<float>(four.x) * unit;
    x[2 * lane + 1] = static_cast<float>(four.y) * unit;
    x[2 * lane + 8] = static_cast<float>(four.z) * unit;
    x[2 * lane + 9] = static_cast<float>(four.w) * unit;
  }
  store_gradient<Element>(d_q, row, head, channel, x);
}

/// d_k and d_v of all keys, 8 channels of one of them per thread. CTAs [keys][heads]. Keys that nobody chose, and those
/// of no sequence, have sums of zero.
template <class Element>
__global__ void __launch_bounds__(kFinishThreads) key_gradients_kernel(const __grid_constant__ KeyGradients p) {
  wait_for_earlier_kernels();
  const int head_dim = p.d_k.head_dim, pieces = 2 * head_dim / kLaneChannels, keys = kFinishThreads / pieces;
  const int key = blockIdx.x * keys + threadIdx.x / pieces, head = blockIdx.y;
  if (key >= p.total_k) return;
  const int channel = threadIdx.x % pieces * kLaneChannels;
  const bool is_k = channel < head_dim;
  float x[kLaneChannels];
  load_channels(p.sums + (std::int64_t{head} * p.total_k + key) * 2 * head_dim + channel, x);
#pragma unroll
  for (float& value : x) value *= is_k ? p.softmax_scale : 1.0f;
  store_gradient<Element>(is_k ? p.d_k : p.d_v, key, p.first_head + head, channel % head_dim, x);
}

}  // namespace openmsa::cuda::generic::training
