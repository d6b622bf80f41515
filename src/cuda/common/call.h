// The tensors of a call as kernels take them, and what kernels ask of their memory.
#pragma once

#include <cuda.h>

#include "core/problem.h"
#include "cuda/common/batch_view.h"
#include "cuda/common/launch.h"
#include "cuda/common/selection.h"
#include "cuda/common/tensor_view.h"

namespace openmsa::cuda {

/// Whether every row starts at a multiple of 16 bytes.
bool has_aligned_rows(const openmsa_tensor& tensor);

/// Throws Failure UNSUPPORTED where rows are not aligned to 16 bytes, d_o is not in the plan's dtype, or an output o is
/// neither in that nor, where the operation may write that, in fp32.
void check_tensors(const core::Problem& problem, bool may_write_fp32);

BatchView batch_view(const core::Problem& problem);

/// Keys in boxes of `box_rows` tokens of one head: [rows][heads][dim], [pages][page_size][heads][dim], or without
/// heads. `stand_in`: memory to name where there are no keys.
CUtensorMap key_map(const core::Problem& problem, const openmsa_tensor& contiguous, const openmsa_tensor& paged,
                    bool has_heads, std::int32_t box_rows, const void* stand_in);

/// Rows like those of q in boxes of one query: {channels of a half, 8 heads, halves, 8-head groups, tokens}, so that
/// groups of 8 rows with their halves follow one another; with fewer heads a box is one half of them.
CUtensorMap query_map(const core::Problem& problem, const openmsa_tensor& rows);

/// Scale of an fp8 cache: a tensor with a number per token, per head too where it has two dimensions; one number for
/// all; or absent.
TokenScale token_scale(const openmsa_tensor& scale);

/// Scales of index keys: per token or one for all, or else per kv_block.
TokenScale index_token_scale(const core::Problem& problem);
BlockScale index_block_scale(const core::Problem& problem);

SelectionRules selection_rules(const core::Plan& plan);
SelectionView selection_view(const openmsa_tensor& topk_indices);
CandidateView candidate_view(const openmsa_tensor& candidates);
ScoreView score_view(const openmsa_tensor& block_scores);
QueryRows query_rows(const openmsa_tensor& q);
IndexQueryRows index_query_rows(const core::Problem& problem);
OutputRows output_rows(const openmsa_tensors& tensors);

/// softmax_scale for exponentials to the base 2.
float scale_log2(const core::Plan& plan);

/// The caller's stream on the current device.
Launch launch_on(void* stream);

}  // namespace openmsa::cuda
