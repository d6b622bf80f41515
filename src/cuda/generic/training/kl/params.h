// KL loss that trains the index branch, with kv_blocks in the outer loop: parameters of its kernels.
//
//   P_idx[i,j,r] = exp2(s_idx * index_scale_log2 - lse2_idx[i,r])        the student
//   P[i,j,r]     = mean over the group's heads of exp2(s * scale_log2 - lse2)   the teacher
//   kl_loss      = sum_{i,r} w[i] sum_j P (log P - log P_idx)            g = w[i] (P_idx - P)
//   d_index_q    = index_scale sum_j g index_k                           d_index_k = index_scale sum_{i,r} g index_q
//
// The work goes in list batches (generic/lists/params.h): some query rows and KV heads at a time.
#pragma once

#include <cstdint>

#include "cuda/common/batch_view.h"
#include "cuda/generic/lists/params.h"
#include "cuda/generic/training/params.h"
#include "cuda/generic/training/teacher.h"

namespace openmsa::cuda::generic::training::kl {

inline constexpr int kStepQueries = 32;  // queries of a step

/// A gradient (P_idx - P) leaves its registers in 16 bits times this: fp16 has no small numbers.
constexpr float gradient_scale(bool is_fp16) { return is_fp16 ? 1 << 14 : 1; }

/// Params::next_item of each kernel that takes items.
inline constexpr int kIndexLseItem = 0, kTeacherItem = 1, kStepsItem = 2, kItemCounters = 3;

/// An item as a CTA takes it.
struct WorkItem : generic::ListItem {
  std::int32_t number;  // among those of the list batch

  WorkItem() = default;
  OPENMSA_DEVICE WorkItem(const generic::ListItem& item, std::int32_t number) : ListItem(item), number(number) {}
};

/// Log-sum-exp of a row over the keys of one kv_block: max + log2(sum), in units of log2.
struct PartialLse {
  float max;
  float sum;
};

/// A (query row, KV head) of a list batch.
struct alignas(16) RowStats {
  float lse2;    // of the student, in units of log2; NaN where the row's results are NaN
  float weight;  // w / largest |w|. 0: the row contributes nothing, whatever it holds
  float bound;   // of |sum_j (P_idx - P) index_k[j,c]|, see fixed_bound
};

/// Weight of each query; absent: 1 / (used query rows * num_heads), the mean.
struct KlWeights {
  const float* data;  // nullptr: the mean
  std::int64_t stride;
};

/// Largest finite magnitudes.
struct Maxima {
  std::uint32_t*
      weight;      // [1] of weights, zero before; bits of a float: of positive ones the larger has the larger bits
  float* index_k;  // [total_k] of the index keys of the kv_block up to each
};

/// d_index_q is summed in fixed point, by reduce-adds of the copy engine: sums of integers do not depend on their order.
/// With sum_j P_idx = sum_j P = 1 up to rounding
///   |sum_j (P_idx - P) index_k[j,c]| <= 2 max_jc |index_k[j,c]|,  j the keys that the row sees
/// so that numbers in units of 2^-30 times a slightly larger bound never overflow.
OPENMSA_DEVICE float fixed_bound(float max_index_k) { return 2.1F * (max_index_k < 1e-20F ? 1e-20F : max_index_k); }
inline constexpr float kFixedOne = 1 << 30;

struct Params {
  BatchView batch;
  BatchIndex index;  // blocks only
  generic::ListBatch work;
  SelectionView topk_indices;  // absent: the whole history
  std::int32_t slots;          // of a row's partial log-sum-exps: topk, or kv_blocks of the longest sequence
  std::int32_t num_heads;      // KV heads of the layer
  std::int32_t log2_group_size;
  std::int32_t index_dim;
  float scale_log2;        // softmax_scale * log2(e)
  float index_scale_log2;  // log2(e) / sqrt(index_dim)
  float index_scale;
  QueryRows index_q;  // [total_q][num_heads][index_dim]
  FigureRows lse;     // of the teacher
  KlWeights weights;
  Maxima maxima;

  // Of the list batch. A place is ListBatch::place.
  std::int32_t* next_item;       // [kItemCounters] zero before
  PartialLse* partials;          // [places][slots]
  RowStats* stats;               // [places]
  TeacherRows teacher;           //
  std::int32_t* d_index_q_sums;  // [places][index_dim] zero before: (P_idx - P) index_k in fixed point
  float* item_loss;              // [items] share of the loss, / (ln 2 * largest |w|)

  // Of the call.
  float* d_index_k_sums;  // [heads of the batch][total_k][index_dim] zero before; / (index_scale * largest |w|)
  double* loss;           // [1] zero before
};

}  // namespace openmsa::cuda::generic::training::kl
