// One warp's share of a decode step's attention: the heads of one query, and a slice of every key tile.
#pragma once

#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>

#include <type_traits>

#include "cuda/common/math.h"
#include "cuda/sm90/decode/params.h"
#include "cuda/sm90/tile/narrow.cuh"
#include "cuda/sm90/tile/softmax.cuh"

namespace openmsa::cuda::sm90::decode {

/// Running attention of a warp's 16 rows; a thread has rows g and g + 8.
template <class Config>
struct WarpAttention {
  float max[2] = {-INFINITY, -INFINITY};  // base 2
  float sum[2] = {0, 0};                  // of this thread's columns
  float unit = 0;                         // of o: the largest v_scale so far, where tokens have one each
  float o[Config::kDim / 8][4] = {};

  /// Keys [key, key + kChunkKeys) of a stage, of which the query sees those below `end`.
  __device__ __forceinline__ void add(const typename Config::Storage& storage, int stage, int key,
                                      const std::uint32_t (&q)[Config::kDim / 16][4], int end, const AttendParams& p,
                                      const float (&scale_log2)[2], int lane) {
    constexpr int kTiles = Config::kChunkKeys / 8;
    float s[kTiles][4] = {};
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      Config::Keys::add_scores(storage.stages[stage].k, key + n * 8, q, lane, s[n], s[n + 1]);
    }
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = key + n * 8 + lane % 4 * 2 + i % 2;
        float scale = scale_log2[i / 2];
        if constexpr (Config::kIsQuantized) {
          if (p.k_scale.is_per_token()) scale *= storage.k_scale[stage][at];
        }
        s[n][i] = at < end ? s[n][i] * scale : -INFINITY;
        top[i / 2] = fmaxf(top[i / 2], s[n][i]);
      }
    }
    float alpha[2], shift[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      alpha[row] = raise_max(max[row], quad_max(top[row]), shift[row]);
      shift[row] -= Config::Keys::kLift;
      sum[row] *= alpha[row];
    }
    float value_scale[kTiles][2];
    const bool has_value_scale = Config::kIsQuantized && p.v_scale.is_per_token();
    if (has_value_scale) load_value_scales(storage.v_scale[stage], key, end, value_scale, alpha, lane);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = exp2_approx(s[n][i] - shift[i / 2]);
        sum[i / 2] += s[n][i];
        if (has_value_scale) s[n][i] *= value_scale[n][i % 2];
      }
    }
    if (__any_sync(kFullWarp, alpha[0] != 1 || alpha[1] != 1)) {
#pragma unroll
      for (int n = 0; n < Config::kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] *= alpha[i / 2];
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      const auto pack = [&](int n, int i) { return pack_two<typename Config::Keys::Product>(s[n][i], s[n][i + 1]); };
      const std::uint32_t weights[4] = {pack(n, 0), pack(n, 2), pack(n + 1, 0), pack(n + 1, 2)};
      Config::Keys::add_values(storage.stages[stage].v, key + n * 8, end, weights, lane, o);
    }
  }

  __device__ __forceinline__ void store(typename Config::Partial& partial, int slice, int first_row, float value_scale,
                                        int lane) const {
    const int row = first_row + lane / 4;
    const float factor = unit > 0 ? unit * value_scale : value_scale;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = quad_sum(sum[half]);
      if (lane % 4 == 0) {
        partial.max[slice][row + half * 8] = max[half] - Config::Keys::kLift;
        partial.sum[slice][row + half * 8] = total;
      }
      Config::Keys::store_values(o, half, factor, partial.o[slice][row + half * 8], lane);
    }
  }

 private:
  /// v_scale of this thread's columns as shares of the largest so far, so that p times it keeps to the range of 16
  /// bits.
  __device__ __forceinline__ void load_value_scales(const float* scales, int key, int end,
                                                    float (&shares)[Config::kChunkKeys / 8][2], float (&alpha)[2],
                                                    int lane) {
    float largest = unit;
#pragma unroll
    for (int n = 0; n < Config::kChunkKeys / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int at = key + n * 8 + lane % 4 * 2 + c;
        shares[n][c] = at < end ? scales[at] : 0;
        largest = fmaxf(largest, shares[n][c]);
      }
    }
    largest = quad_max(largest);
    const float inverse = largest > 0 ? 1 / largest : 0;
#pragma unroll
    for (int n = 0; n < Config::kChunkKeys / 8; ++n) {
      shares[n][0] *= inverse;
      shares[n][1] *= inverse;
    }
    // From here on o counts in units of `largest`; the sums of probabilities do not.
    alpha[0] *= unit * inverse;
    alpha[1] *= unit * inverse;
    unit = largest;
  }
};

/// Turns this thread's rows of bf16 queries into fp16 (cached_keys.cuh). Returns in `unit` what one of them counts.
template <int kSteps>
__device__ __forceinline__ void narrow_query(std::uint32_t (&q)[kSteps][4], float (&unit)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float2 wide[2 * kSteps];
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      wide[i] = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(q[i / 2][half + i % 2 * 2]));
      largest = fmaxf(largest, fmaxf(fabsf(wide[i].x), fabsf(wide[i].y)));
    }
    const HalfUnit as_half(quad_max(largest));
    unit[half] = as_half.unit;
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) q[i / 2][half + i % 2 * 2] = narrow_two(wide[i], as_half);
  }
}

/// The heads of a query row of q as the left operand, from global memory; the last one fills up 16 rows. unit: what one
/// of the operand counts, in both rows of this thread.
template <class Config>
__device__ __forceinline__ void load_query(const AttendParams& p, std::int64_t row, std::int32_t head, int lane,
                                           std::uint32_t (&q)[Config::kDim / 16][4], float (&unit)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int group_size = 1 << p.log2_group_size;
    const std::int64_t query_head = head * group_size + min(half * 8 + lane / 4, group_size - 1);
    const auto* const from =
        static_cast<const typename Config::Element*>(p.q.data) + row * p.q.strides[0] + query_head * p.q.strides[1];
#pragma unroll
    for (int step = 0; step < Config::kDim / 16; ++step) {
      q[step][half] = *reinterpret_cast<const std::uint32_t*>(from + Config::Keys::query_channel(step, false, lane));
      q[step][2 + half] = *reinterpret_cast<const std::uint32_t*>(from + Config::Keys::query_channel(step, true, lane));
    }
  }
  unit[0] = unit[1] = 1;
  if constexpr (!std::is_same_v<typename Config::Element, typename Config::Keys::Product>) narrow_query(q, unit);
}

}  // namespace openmsa::cuda::sm90::decode
