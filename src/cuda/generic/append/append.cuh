// New tokens into paged caches: a warp per row of one head, four channels per lane.
#pragma once

#include "core/row_scale.h"
#include "cuda/common/e4m3.cuh"
#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/generic/append/params.h"

namespace openmsa::cuda::generic {

inline constexpr int kAppendWarps = 4;

template <class Element>
__device__ __forceinline__ void append_row(const AppendTensor& t, const Element* from, std::int64_t page,
                                           std::int32_t token, std::int32_t page_size, std::int32_t head, int lane) {
  const bool has_channels = lane * 4 < t.dim;
  const std::int64_t to = page * t.page_stride + token * t.token_stride + head * t.cache_head_stride + lane * 4;
  const uint2 four = has_channels ? *reinterpret_cast<const uint2*>(from + lane * 4) : uint2{0, 0};
  if (t.mode == AppendMode::kCopy) {
    if (has_channels) *reinterpret_cast<uint2*>(static_cast<Element*>(t.cache) + to) = four;
    return;
  }
  float* const scale = t.scale + head * t.scale_head_stride + (page * page_size + token) * t.scale_token_stride;
  float x[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = static_cast<float>(reinterpret_cast<const Element*>(&four)[i]);
  if (t.mode == AppendMode::kRoundByScale) {
#pragma unroll
    for (float& value : x) value /= *scale;
  } else if (t.mode == AppendMode::kScalePerToken) {
    float amax = 0;
#pragma unroll
    for (const float value : x) amax = fmaxf(amax, fabsf(value));
    for (int distance = 16; distance > 0; distance /= 2) {
      amax = fmaxf(amax, __shfl_xor_sync(kFullWarp, amax, distance));
    }
    const core::RowScale rounding = core::row_scale(amax);
#pragma unroll
    for (float& value : x) value *= rounding.to_fp8;
    if (lane == 0) *scale = rounding.from_fp8;
  }
  if (has_channels) *reinterpret_cast<std::uint32_t*>(static_cast<std::uint8_t*>(t.cache) + to) = to_e4m3(x);
}

/// CTAs [row]; the warps of one share the rows of all heads and tensors.
template <class Element>
__global__ void __launch_bounds__(kAppendWarps * 32) append_kernel(const __grid_constant__ AppendParams p) {
  wait_for_earlier_kernels();
  const auto row = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t b =
      p.batch.cu_seqlens_q.data == nullptr ? 0 : find_sequence(p.batch.cu_seqlens_q, p.batch.batch + 1, row);
  if (b == p.batch.batch) return;
  const SequenceView view = p.batch.sequence(b);
  const std::int32_t position = view.seqlen_k - view.seqlen_q + row - view.q_row;
  if (view.seqlen_k == 0 || position < 0) return;
  const std::int64_t page = p.batch.page(b, position / p.batch.page_size);
  const int lane = threadIdx.x % 32;
  int index = threadIdx.x / 32;
  for (const AppendTensor& t : p.tensors) {
    for (; index < t.heads; index += kAppendWarps) {
      const auto* const from = static_cast<const Element*>(t.from) + row * t.row_stride + index * t.head_stride;
      append_row(t, from, page, position % p.batch.page_size, p.batch.page_size, index, lane);
    }
    index -= t.heads;
  }
}

}  // namespace openmsa::cuda::generic
