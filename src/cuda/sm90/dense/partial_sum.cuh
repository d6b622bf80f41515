// Partial results of dense attention, put together one after the other:
//
//   o = sum_i 2^(max_i - max) o_i / sum_i 2^(max_i - max) sum_i,   lse = ln 2 (max + log2(sum)).
#pragma once

#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>

#include "cuda/common/math.h"
#include "cuda/common/tensor_view.h"
#include "cuda/sm90/tile/softmax.cuh"

namespace openmsa::cuda::sm90::dense {

/// Four channels of a row.
struct PartialSum {
  float max = -INFINITY;  // in units of log2
  float sum = 0;
  float4 o = {0, 0, 0, 0};

  __device__ __forceinline__ void add(float other_max, float other_sum, const float4& other_o) {
    float shift;
    const float alpha = raise_max(max, other_max, shift), weight = exp2_approx(other_max - shift);
    sum = sum * alpha + other_sum * weight;
    o.x = o.x * alpha + other_o.x * weight;
    o.y = o.y * alpha + other_o.y * weight;
    o.z = o.z * alpha + other_o.z * weight;
    o.w = o.w * alpha + other_o.w * weight;
  }

  /// o[token, head, channel ..] and, with channel 0, lse[token, head].
  template <class Element>
  __device__ __forceinline__ void write(const OutputRows& out, std::int64_t token, std::int64_t head,
                                        int channel) const {
    const float inverse = sum == 0 ? 0 : reciprocal_approx(sum);
    cutlass::Array<float, 4> scaled;
    scaled[0] = o.x * inverse;
    scaled[1] = o.y * inverse;
    scaled[2] = o.z * inverse;
    scaled[3] = o.w * inverse;
    const cutlass::NumericArrayConverter<Element, float, 4> convert;
    const auto rounded = convert(scaled);
    auto* const to = static_cast<Element*>(out.o) + token * out.o_strides[0] + head * out.o_strides[1] + channel;
    *reinterpret_cast<uint2*>(to) = reinterpret_cast<const uint2&>(rounded);
    if (channel == 0 && out.lse != nullptr) {
      out.lse[token * out.lse_strides[0] + head * out.lse_strides[1]] =
          sum == 0 ? -INFINITY : (max + log2_approx(sum)) * kLn2;
    }
  }
};

}  // namespace openmsa::cuda::sm90::dense
