// New tokens into paged caches: a warp per row of one head, four channels per lane.
#pragma once

#include "core/row_scale.h"
#include "cuda/common/e4m3.cuh"
#include "cuda/common/grid_dependency.cuh"
#include "cuda/common/math.h"
#include "cuda/generic/append/params.h"

namespace openmsa::cuda::generic {

inline constexpr int kAppendWarps = 4;

/// Where a new token goes.
struct NewToken {
  std::int32_t sequence;
  std::int32_t index;     // among the new tokens of its sequence
  std::int32_t position;  // in its sequence
  std::int64_t page;
  std::int32_t entry;  // in the page
};

/// A lane's four channels of a row, 0 past its end.
template <class Element>
__device__ __forceinline__ uint2 load_four(const Element* row, std::int32_t dim, int lane) {
  return lane * 4 < dim ? *reinterpret_cast<const uint2*>(row + lane * 4) : uint2{0, 0};
}

template <class Element>
__device__ __forceinline__ void widen_four(const uint2& four, float (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = static_cast<float>(reinterpret_cast<const Element*>(&four)[i]);
}

/// The largest magnitude in a row, NaN ignored, in every lane.
__device__ __forceinline__ float row_amax(const float (&x)[4]) {
  float amax = 0;
#pragma unroll
  for (const float value : x) amax = fmaxf(amax, fabsf(value));
  for (int distance = 16; distance > 0; distance /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(kFullWarp, amax, distance));
  }
  return amax;
}

/// The scale of a new token's kv_block. It follows from the block's first token: where that is new too, each token works
/// it out and the first writes it; else an earlier call has.
template <class Element>
__device__ __forceinline__ float scale_of_block(const BatchView& batch, const AppendTensor& t, const Element* from,
                                                const NewToken& token, int lane) {
  const std::int32_t before = token.position % batch.block_size;  // tokens of the block in front of this one
  const std::int64_t page = batch.page(token.sequence, (token.position - before) / batch.page_size);
  float* const stored = t.scale + page * t.scale_token_stride;
  if (token.index < before) return *stored;
  float first[4];
  widen_four<Element>(load_four(from - before * t.row_stride, t.dim, lane), first);
  const float scale = core::block_scale(row_amax(first));
  if (before == 0 && lane == 0) *stored = scale;
  return scale;
}

template <class Element>
__device__ __forceinline__ void append_row(const BatchView& batch, const AppendTensor& t, const Element* from,
                                           const NewToken& token, std::int32_t head, int lane) {
  const bool has_channels = lane * 4 < t.dim;
  const std::int64_t to =
      token.page * t.page_stride + token.entry * t.token_stride + head * t.cache_head_stride + lane * 4;
  const uint2 four = load_four(from, t.dim, lane);
  if (t.mode == AppendMode::kCopy) {
    if (has_channels) *reinterpret_cast<uint2*>(static_cast<Element*>(t.cache) + to) = four;
    return;
  }
  float x[4];
  widen_four<Element>(four, x);
  if (t.mode == AppendMode::kRoundByScale || t.mode == AppendMode::kScalePerBlock) {
    const float scale = t.mode == AppendMode::kRoundByScale ? *t.scale : scale_of_block(batch, t, from, token, lane);
#pragma unroll
    for (float& value : x) value /= scale;
  } else if (t.mode == AppendMode::kScalePerToken) {
    const core::RowScale rounding = core::row_scale(row_amax(x));
#pragma unroll
    for (float& value : x) value *= rounding.to_fp8;
    const std::int64_t place = token.page * batch.page_size + token.entry;
    if (lane == 0) t.scale[head * t.scale_head_stride + place * t.scale_token_stride] = rounding.from_fp8;
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
  if (view.seqlen_k == 0 || position < 0 || !p.batch.shard.holds(position >> log2_of(p.batch.block_size))) return;
  const NewToken token{b, row - view.q_row, position, p.batch.page(b, position / p.batch.page_size),
                       position % p.batch.page_size};
  const int lane = threadIdx.x % 32;
  int index = threadIdx.x / 32;
  for (const AppendTensor& t : p.tensors) {
    for (; index < t.heads; index += kAppendWarps) {
      const auto* const from = static_cast<const Element*>(t.from) + row * t.row_stride + index * t.head_stride;
      append_row(p.batch, t, from, token, index, lane);
    }
    index -= t.heads;
  }
}

}  // namespace openmsa::cuda::generic
