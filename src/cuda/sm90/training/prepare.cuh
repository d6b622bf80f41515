// What the backward kernel needs to know of keys and rows beforehand. A row of head_dim channels is read by
// head_dim / 8 neighbouring lanes, 16 bytes each.
#pragma once

#include <cmath>

#include "cuda/common/grid_dependency.cuh"
#include "cuda/sm90/training/channels.cuh"

namespace openmsa::cuda::sm90::training {

inline constexpr int kPrepareThreads = 256;
inline constexpr int kBoundsKeys = 256;  // keys of a CTA

__device__ __forceinline__ void raise(float* maximum, float value) {  // value >= 0: floats are ordered as their bits
  atomicMax(reinterpret_cast<int*>(maximum), __float_as_int(value));
}

/// Maxima over keys [begin, end) of one head, in every thread's own keys; a CTA.
template <class Element>
__device__ __forceinline__ KeyBounds key_maxima(const KeyInputs& in, int head, int begin, int end) {
  const int lanes = in.head_dim / kLaneChannels, keys = kPrepareThreads / lanes;
  const int channel = threadIdx.x % lanes * kLaneChannels;
  const auto* const k = static_cast<const Element*>(in.k.data) + head * in.k.strides[1] + channel;
  const auto* const v = static_cast<const Element*>(in.v.data) + head * in.v.strides[1] + channel;
  KeyBounds bounds{0, 0};
#pragma unroll 4
  for (int first = begin; first < end; first += keys) {  // all lanes of a warp go round as often
    const int key = min(first + static_cast<int>(threadIdx.x) / lanes, end - 1);
    float x[kLaneChannels];
    load_channels(k + key * in.k.strides[0], x);
#pragma unroll
    for (const float value : x) bounds.k_max = fmaxf(bounds.k_max, isfinite(value) ? fabsf(value) : 0);
    load_channels(v + key * in.v.strides[0], x);
    const float norm = norm_over(lanes, x);
    bounds.v_norm = fmaxf(bounds.v_norm, isfinite(norm) ? norm : 0);
  }
  return bounds;
}

/// CTAs [total_k / kBoundsKeys][num_heads_kv].
template <class Element>
__global__ void __launch_bounds__(kPrepareThreads) key_bounds_kernel(const BatchView batch, const KeyInputs in) {
  __shared__ KeyBounds maxima;
  wait_for_earlier_kernels();
  const int first = blockIdx.x * kBoundsKeys, end = min(first + kBoundsKeys, batch.total_k), head = blockIdx.y;
  int b = batch.cu_seqlens_k.data == nullptr ? 0 : find_sequence(batch.cu_seqlens_k, batch.batch + 1, first);
  for (; b < batch.batch; ++b) {
    const SequenceView view = batch.sequence(b);
    if (view.k_row >= end) break;
    const int from = max(first, view.k_row), to = min(end, view.k_row + view.seqlen_k);
    if (from >= to) continue;
    if (threadIdx.x == 0) maxima = {0, 0};
    __syncthreads();
    const KeyBounds mine = key_maxima<Element>(in, head, from, to);
    const float v_norm = max_over(32, mine.v_norm), k_max = max_over(32, mine.k_max);
    if (threadIdx.x % 32 == 0) {
      raise(&maxima.v_norm, v_norm);
      raise(&maxima.k_max, k_max);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      KeyBounds& bounds = in.bounds[std::int64_t{b} * in.num_heads_kv + head];
      raise(&bounds.v_norm, maxima.v_norm);
      raise(&bounds.k_max, maxima.k_max);
    }
  }
}

/// Statistics of a row and query head that sees something, as RowStats has them.
struct RowFigures {
  float lse2, delta, to_fixed;

  __device__ __forceinline__ RowFigures(float lse, float delta, float d_o_norm, const KeyBounds& keys)
      : lse2(lse * static_cast<float>(kLog2E)), delta(delta) {
    constexpr float kLeastBound = 0x1p-90f;  // far below gradients that matter; its reciprocal stays a number
    const float bound = (d_o_norm * keys.v_norm + fabsf(delta)) * keys.k_max;
    to_fixed = isfinite(lse) && isfinite(bound) ? 0x1p30f / fmaxf(bound, kLeastBound) : NAN;
  }
};

/// Statistics of the batch's rows.
template <class Element, class Output>
__global__ void __launch_bounds__(kPrepareThreads) row_stats_kernel(const BackwardParams p, const RowInputs in) {
  wait_for_earlier_kernels();
  const int lanes = in.head_dim / kLaneChannels, heads = p.work.heads << p.log2_group_size;
  const int entry = static_cast<int>(blockIdx.x * kPrepareThreads + threadIdx.x) / lanes;
  const bool exists = entry < p.work.rows * heads;
  const int row = p.work.first_row + (exists ? entry / heads : 0), h = exists ? entry % heads : 0;
  const int head = (p.work.first_head << p.log2_group_size) + h, channel = threadIdx.x % lanes * kLaneChannels;
  float d_o[kLaneChannels], o[kLaneChannels];
  load_channels(static_cast<const Element*>(in.d_o.data) + row * in.d_o.strides[0] + head * in.d_o.strides[1] + channel,
                d_o);
  load_channels(static_cast<const Output*>(in.o.data) + row * in.o.strides[0] + head * in.o.strides[1] + channel, o);
  float delta = 0;
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) delta += d_o[i] * o[i];
  delta = sum_over(lanes, delta);
  const float norm = norm_over(lanes, d_o);
  if (!exists || channel != 0) return;

  const int group = head >> p.log2_group_size, group_size = 1 << p.log2_group_size;
  const std::int64_t at = p.work.place(group, row) * group_size + (head & (group_size - 1));
  const float lse = in.lse.at(row, head);
  const int sequence =
      p.batch.cu_seqlens_q.data == nullptr ? 0 : find_sequence(p.batch.cu_seqlens_q, p.batch.batch + 1, row);
  if (p.batch.position_in(sequence, row) < 0 || lse == -INFINITY) {  // sees nothing: p = 0, d_q = 0
    p.stats.lse2[at] = INFINITY;
    p.stats.delta[at] = 0;
    p.stats.to_fixed[at] = 1;
    return;
  }
  if (in.d_lse.data != nullptr) delta -= in.d_lse.at(row, head);
  const RowFigures figures(lse, delta, norm, in.bounds[std::int64_t{sequence} * in.num_heads_kv + group]);
  p.stats.lse2[at] = figures.lse2;
  p.stats.delta[at] = figures.delta;
  p.stats.to_fixed[at] = figures.to_fixed;
}

}  // namespace openmsa::cuda::sm90::training
