// The tensors of a call as kernels take them, and what kernels ask of their memory.
#pragma once

#include <cuda.h>

#include "core/problem.h"
#include "cuda/common/batch_view.h"
#include "cuda/common/token_scale.h"
#include "cuda/sm90/launches.h"

namespace openmsa::cuda {

/// Throws Failure UNSUPPORTED where rows are not aligned to 16 bytes, or o is not in the plan's dtype.
void check_tensors(const core::Problem& problem);

BatchView batch_view(const core::Problem& problem);

/// Keys in boxes of `box_rows` tokens of one head: [rows][heads][dim], [pages][page_size][heads][dim], or without
/// heads. `stand_in`: memory to name where there are no keys.
CUtensorMap key_map(const core::Problem& problem, const openmsa_tensor& contiguous, const openmsa_tensor& paged,
                    bool has_heads, std::int32_t box_rows, const void* stand_in);

/// Of an fp8 cache: a tensor with a number per token, per head too where it has two dimensions; with one; or absent.
TokenScale token_scale(const openmsa_tensor& scale);

sm90::Launch launch_on(void* stream);

}  // namespace openmsa::cuda
