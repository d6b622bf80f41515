// Rows of index_q in shared memory, as the product with index keys wants them:
//
//   keys        products   rows of index_q
//   16 bits     16 bits    as they are
//   e4m3        e4m3       rounded to e4m3, each with a scale (SCALED) or without (CAST), or e4m3 already
//   e4m3        fp16       exact (EXACT), for keys that become fp16 on the way. bf16 becomes fp16, each row times the
//                          power of two that brings its largest magnitude to [2^14, 2^15): nothing is lost but what lies
//                          2^-29 and more below it, where fp32 sums round
//
// What a row was multiplied by does not change the order of its scores; block_scores take it out again.
#pragma once

#include <cute/tensor.hpp>
#include <type_traits>

#include "core/row_scale.h"
#include "cuda/common/e4m3.cuh"
#include "cuda/common/math.h"
#include "cuda/common/tensor_view.h"
#include "cuda/sm90/tile/narrow.cuh"

namespace openmsa::cuda::sm90 {

/// 8 channels of a row on their way into shared memory, and what one of them counts.
template <class Key>
struct QueryChannels {
  std::conditional_t<sizeof(Key) == 1, uint2, uint4> packed;
  float unit;
};

/// The largest magnitude in a row, NaN ignored; kLanes neighbours hold 8 channels of it each.
template <int kLanes>
__device__ __forceinline__ float row_amax(const float (&values)[8]) {
  float amax = 0;
#pragma unroll
  for (const float value : values) amax = fmaxf(amax, fabsf(value));
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(kFullWarp, amax, distance));
  }
  return amax;
}

/// Rounds 8 channels of a row as `rounding` says, which all lanes that hold it do together.
template <int kLanes, class Query, class Key>
__device__ __forceinline__ QueryChannels<Key> convert_channels(const uint4& packed, openmsa_index_q_rounding rounding) {
  if constexpr (std::is_same_v<Query, Key>) {
    return {packed, 1};
  } else {
    const auto* const channels = reinterpret_cast<const Query*>(&packed);
    float values[8];
#pragma unroll
    for (int c = 0; c < 8; ++c) values[c] = static_cast<float>(channels[c]);
    if constexpr (sizeof(Key) == 1) {
      core::RowScale row{1, 1};
      if (rounding == OPENMSA_INDEX_Q_SCALED) row = core::row_scale(row_amax<kLanes>(values));
#pragma unroll
      for (float& value : values) value *= row.to_fp8;
      const std::uint32_t low = to_e4m3({values[0], values[1], values[2], values[3]});
      return {{low, to_e4m3({values[4], values[5], values[6], values[7]})}, row.from_fp8};
    } else {
      const HalfUnit unit(row_amax<kLanes>(values));
      const auto two = [&](int c) { return narrow_two({values[c], values[c + 1]}, unit); };
      return {{two(0), two(2), two(4), two(6)}, unit.unit};
    }
  }
}

/// Stores 8 channels of a row for a product with keys in e4m3 that are widened in registers: a thread then has channels
/// 4 t to 4 t + 3 of every 16, which the product takes as 2 t, 2 t + 1 and 2 t + 8, 2 t + 9.
template <class Tensor>
__device__ __forceinline__ void store_as_widened(Tensor& smem, int row, int channel, const uint4& packed) {
  const std::uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int place = channel / 16 * 16 + channel % 16 / 2 + i / 2 * 2 + i % 2 * 8;
    *reinterpret_cast<std::uint32_t*>(&smem(row, place)) = pairs[i];
  }
}

/// Hands take(row, channel, 8 channels) the (query, head) rows from query `first` of a sequence on, to kThreads threads
/// that all call it; the last query fills up the tile. Chunk: what 8 channels are in memory.
template <class Config, int kThreads, class Chunk, class Take>
__device__ __forceinline__ void read_index_queries(const IndexQueryRows& rows, std::int32_t heads, std::int32_t q_row,
                                                   int count, int first, int thread, Take take) {
  constexpr int kChunks = Config::kDim / 8;
  constexpr int kAll = Config::kRows * kChunks, kPerThread = (kAll + kThreads - 1) / kThreads;
  constexpr int kAtOnce = kPerThread < 8 ? kPerThread : 8;  // loads of a thread on their way
  static_assert(kAll <= kThreads || kAll % (kAtOnce * kThreads) == 0);
  static_assert(kAll % 32 == 0, "whole warps round together");
  constexpr int kElementBytes = sizeof(Chunk) / 8;
  const auto* const data = static_cast<const char*>(rows.data);
#pragma unroll 1
  for (int begin = thread; begin < kAll; begin += kAtOnce * kThreads) {
    Chunk chunks[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int i = begin + n * kThreads, row = i / kChunks, channel = i % kChunks * 8;
      const int query = min(first + row / heads, count - 1);
      const std::int64_t from = (q_row + query) * rows.strides[0] + row % heads * rows.strides[1] + channel;
      chunks[n] = *reinterpret_cast<const Chunk*>(data + from * kElementBytes);
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int i = begin + n * kThreads;
      take(i / kChunks, i % kChunks * 8, chunks[n]);
    }
  }
}

/// Copies rows into a tile by store(row, channel, QueryChannels).
template <class Config, int kThreads, class Params, class Store>
__device__ __forceinline__ void load_index_queries(const Params& p, std::int32_t q_row, int count, int first,
                                                   int thread, Store store) {
  using Key = typename Config::Key;
  if constexpr (sizeof(Key) == 1) {
    if (p.index_q.is_e4m3) {
      const auto take = [&](int row, int channel, const uint2& packed) {
        store(row, channel, QueryChannels<Key>{packed, 1});
      };
      return read_index_queries<Config, kThreads, uint2>(p.index_q, p.heads, q_row, count, first, thread, take);
    }
  }
  const auto take = [&](int row, int channel, const uint4& packed) {
    store(row, channel, convert_channels<Config::kDim / 8, typename Config::Query, Key>(packed, p.index_q.rounding));
  };
  read_index_queries<Config, kThreads, uint4>(p.index_q, p.heads, q_row, count, first, thread, take);
}

/// The tile as wgmma reads it; `units`: of each row, where they are wanted.
template <class Config, int kThreads, class Params>
__device__ __forceinline__ void load_index_queries(const Params& p, std::int32_t q_row, int count, int first,
                                                   int thread, typename Config::Key* to, float* units) {
  using namespace cute;
  Tensor smem = make_tensor(make_smem_ptr(to), typename Config::LayoutQ{});
  const auto store = [&](int row, int channel, const QueryChannels<typename Config::Key>& channels) {
    using Packed = decltype(channels.packed);
    *reinterpret_cast<std::remove_cv_t<Packed>*>(&smem(row, channel)) = channels.packed;
    if (channel == 0 && units != nullptr) units[row] = channels.unit;
  };
  load_index_queries<Config, kThreads>(p, q_row, count, first, thread, store);
}

}  // namespace openmsa::cuda::sm90
