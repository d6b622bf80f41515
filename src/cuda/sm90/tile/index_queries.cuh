// Rows of index_q in shared memory, rounded to e4m3 where the keys are.
#pragma once

#include <cute/tensor.hpp>

#include "core/row_scale.h"
#include "cuda/common/e4m3.cuh"
#include "cuda/common/math.h"

namespace openmsa::cuda::sm90 {

/// Rounds 8 channels of a row to e4m3. Lanes that hold the row, kLanes neighbours, agree on its scale.
template <int kLanes, class Query>
__device__ __forceinline__ uint2 round_channels(const uint4& packed, float& scale) {
  const auto* const channels = reinterpret_cast<const Query*>(&packed);
  float values[8], amax = 0;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    values[c] = static_cast<float>(channels[c]);
    amax = fmaxf(amax, fabsf(values[c]));
  }
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(kFullWarp, amax, distance));
  }
  const core::RowScale row = core::row_scale(amax);
  scale = row.from_fp8;
#pragma unroll
  for (float& value : values) value *= row.to_fp8;
  return {to_e4m3({values[0], values[1], values[2], values[3]}), to_e4m3({values[4], values[5], values[6], values[7]})};
}

/// Copies the (query, head) rows from query `first` of a sequence on into the swizzled tile, by kThreads threads.
/// `q_row` and `count`: the sequence's first query and how many it has; the last one fills up the tile. `scales`:
/// rounded row -> row, where they are wanted.
template <class Config, int kThreads, class Params>
__device__ __forceinline__ void load_index_queries(const Params& p, std::int32_t q_row, int count, int first,
                                                   int thread, typename Config::Key* to, float* scales) {
  using namespace cute;
  constexpr int kChunks = Config::kDim / 8;  // of 16 bytes
  Tensor smem = make_tensor(make_smem_ptr(to), typename Config::LayoutQ{});
  const auto* q = static_cast<const typename Config::Query*>(p.index_q.data);
  for (int i = thread; i < Config::kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, channel = i % kChunks * 8;
    const int query = min(first + row / p.heads, count - 1);
    const auto* from = q + (q_row + query) * p.index_q.strides[0] + row % p.heads * p.index_q.strides[1] + channel;
    const uint4 packed = *reinterpret_cast<const uint4*>(from);
    if constexpr (Config::kIsQuantized) {
      float scale;
      const uint2 rounded = round_channels<kChunks, typename Config::Query>(packed, scale);
      *reinterpret_cast<uint2*>(&smem(row, channel)) = rounded;
      if (channel == 0 && scales != nullptr) scales[row] = scale;
    } else {
      *reinterpret_cast<uint4*>(&smem(row, channel)) = packed;
    }
  }
}

}  // namespace openmsa::cuda::sm90
