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
#include "cuda/generic/training/teacher.h"

namespace openmsa::cuda::generic::training {

/// Maxima over keys of a KV head, of finite numbers: a query that sees another one has no finite lse or delta.
struct KeyBounds {
  float v_norm;  // |v_j|_2
  float k_max;   // |k[j,c]|
};

/// What the backward kernel knows of each (row, query head), [heads of the batch][rows of the batch][group_size].
struct RowStats {
  KeyBounds* keys;  // [heads of the batch][rows of the batch] over the keys that the row sees
  float* lse2;      // log2(e) * lse; +inf where lse is -inf, so that p = 0
  float* delta;     // d_o.o - d_lse
  /// d_q (before softmax_scale) times this is summed as an int32, see d_q_sums. Not finite where d_q is NaN as a whole:
  /// NaN where lse or |d_o| is not finite, so that d_v of the keys is NaN too; infinite where delta alone is not.
  float* to_fixed;
};

/// d_q is summed in fixed point, by reduce-adds of the copy engine: sums of integers do not depend on their order. With
///   |d_q[c]| <= sum_j |ds_j| max_j |k[j,c]| <= (|d_o| max_j |v_j| + |delta|) max_jc |k[j,c]|
/// over the keys that the row sees, and to_fixed = 2^30 / that bound, no sum can overflow.
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
  TeacherRows teacher;  // wanted for the KL loss, or not
  std::int32_t log2_group_size;
  float scale_log2;        // softmax_scale * log2(e)
  std::int32_t* d_q_sums;  // [heads of the batch][rows of the batch][group_size * head_dim]: zero before, see above
  float* d_kv_sums;  // [heads of the batch][total_k][2][head_dim]: d_k / softmax_scale and d_v, added up item by item
};

// ---- Before and after the backward kernel ---------------------------------------------------------------------------

struct KeyInputs {
  QueryRows k, v;  // [total_k][num_heads_kv][head_dim]
  std::int32_t num_heads_kv;
  std::int32_t head_dim;
  KeyBounds* bounds;  // [total_k][num_heads_kv] over the keys of the kv_block up to each
};

/// The kv_blocks that a query row visits: what it chose, or all up to its own. Numbers in the selection that are no
/// kv_block, or one after the row's own, count as none.
struct VisitedBlocks {
  SelectionView topk_indices;  // absent: all
  std::int32_t topk;

  OPENMSA_DEVICE std::int32_t slots(std::int32_t position, std::int32_t block_size) const {
    if (position < 0) return 0;
    return topk_indices.data == nullptr ? position / block_size + 1 : topk;
  }

  /// The kv_block of a slot; negative: none.
  OPENMSA_DEVICE std::int32_t block(std::int32_t head, std::int32_t row, std::int32_t position, std::int32_t slot,
                                    std::int32_t block_size) const {
    const std::int32_t block =
        topk_indices.data == nullptr ? slot : topk_indices.row(head, row)[slot * topk_indices.strides[2]];
    return std::int64_t{block} * block_size <= position ? block : -1;
  }
};

struct SeenKeys {
  VisitedBlocks visited;
  const KeyBounds* bounds;  // KeyInputs::bounds
  std::int32_t num_heads_kv;
};

/// lse or d_lse [total_q][num_heads_q].
struct FigureRows {
  const float* data;  // nullptr: absent
  std::int64_t strides[2];
  OPENMSA_DEVICE std::int64_t place(std::int32_t row, std::int32_t head) const {
    return row * strides[0] + head * strides[1];
  }
  OPENMSA_DEVICE float at(std::int32_t row, std::int32_t head) const { return data[place(row, head)]; }
};

struct RowInputs {
  QueryRows d_o, o;  // [total_q][num_heads_q][head_dim]
  FigureRows lse, d_lse;
  std::int32_t head_dim;
};

/// d_q, d_k or d_v [total][heads][head_dim], in the plan's dtype or fp32.
struct GradientRows {
  void* data;
  std::int64_t strides[2];
  std::int32_t head_dim;
  bool is_fp32;
  bool is_aligned;  // rows to 16 bytes
};

/// d_k and d_v of some KV heads.
struct KeyGradients {
  const float* sums;  // BackwardParams::d_kv_sums
  std::int32_t first_head;
  std::int32_t heads;
  std::int32_t total_k;
  float softmax_scale;
  GradientRows d_k, d_v;
};

}  // namespace openmsa::cuda::generic::training
