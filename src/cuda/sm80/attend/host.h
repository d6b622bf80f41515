// Attention over a selection, and over all keys.
#pragma once

#include <cstddef>

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::sm80::attend {

/// Workspace for every call of the plan.
std::size_t sparse_attention_bytes(const core::Plan& plan);
std::size_t dense_attention_bytes(const core::Plan& plan);

/// o and lse from topk_indices.
void sparse_attention(const core::Problem& problem, core::Arena arena, Launch launch);

/// o and lse over all keys that a query sees.
void dense_attention(const core::Problem& problem, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm80::attend
