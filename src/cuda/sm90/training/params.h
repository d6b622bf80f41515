// Gradient of attention: parameters of the kernels.
//
//   p = exp2(s * scale_log2 - lse2),   ds = p * (d_o.v - delta),   delta = d_o.o - d_lse
//   d_q = softmax_scale * sum_j ds k,  d_k = softmax_scale * sum_i ds q,  d_v = sum_i p d_o
//
// The work goes in list batches (generic/lists/params.h): some query rows and KV heads at a time.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/generic/lists/params.h"

namespace openmsa::cuda::sm90::training {

/// What the backward kernel knows of each (row, query head), [heads of the batch][rows of the batch][group_size].
struct RowStats {
  float* lse2;      // log2(e) * lse; +inf where lse is -inf, so that p = 0
  float* delta;     // d_o.o - d_lse
  float* to_fixed;  // d_q (before softmax_scale) times this is summed as an int32, see d_q_sums; NaN where lse, delta or
                    // |d_o| is not finite, or lse is NaN: then d_q is NaN as a whole
};

/// d_q is summed in fixed point, by reduce-adds of the copy engine: sums of integers do not depend on their order. With
///   |d_q[c]| <= sum_j |ds_j| max_j |k[j,c]| <= (|d_o| max_j |v_j| + |delta|) max_jc |k[j,c]|
/// to_fixed = 2^30 / that bound, no sum can overflow. The maxima are those of a sequence and KV head, over finite
/// numbers: a query that sees another one has no finite lse or delta.
///
/// Sums of a row and KV head: [2 halves of the channels][group_size][head_dim / 2], a half's channels as accumulators
/// hold them: the four of a quad's lane in 16 bytes, chunks of a row swizzled by its head.
OPENMSA_DEVICE std::int32_t fixed_place(std::int32_t head_dim, std::int32_t group_size, std::int32_t head,
                                        std::int32_t channel) {
  const std::int32_t width = head_dim / 2, half = channel / width, c = channel % width;
  const std::int32_t chunks = width / 16, chunk = c / 16, lane = c % 8 / 2, place = c % 16 / 8 * 2 + c % 2;
  return (half * group_size + head) * width + ((chunk ^ (head & (chunks - 1))) * 4 + lane) * 4 + place;
}

struct BackwardParams {
  BatchView batch;
  generic::ListBatch work;
  RowStats stats;
  std::int32_t log2_group_size;
  float scale_log2;         // softmax_scale * log2(e)
  std::int32_t* d_q_sums;   // [heads of the batch][rows of the batch][group_size * head_dim]: zero before, see above
  float* d_kv_sums;         // [heads of the batch][total_k][2][head_dim]: d_k / softmax_scale and d_v, added up item by item
};

}  // namespace openmsa::cuda::sm90::training
