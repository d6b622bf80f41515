// The portable kernels, for GPUs of compute capability 8.0 and later that have none of their own: mma.sync, ldmatrix and
// cp.async. Which plans and operations they serve, and their order in a call.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>
#include <span>

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::sm80 {

inline constexpr openmsa_op kOperations[] = {OPENMSA_OP_BLOCK_SCORES,
                                             OPENMSA_OP_TOPK,
                                             OPENMSA_OP_SELECT_BLOCKS,
                                             OPENMSA_OP_SPARSE_ATTENTION,
                                             OPENMSA_OP_MSA_ATTENTION,
                                             OPENMSA_OP_DENSE_ATTENTION,
                                             OPENMSA_OP_SPARSE_ATTENTION_BACKWARD,
                                             OPENMSA_OP_DENSE_ATTENTION_BACKWARD,
                                             OPENMSA_OP_KL_LOSS,
                                             OPENMSA_OP_MSA_ATTENTION_BACKWARD,
                                             OPENMSA_OP_BLOCK_RECALL,
                                             OPENMSA_OP_APPEND_KV};

/// Whether this build has code for the current device.
bool has_code();

/// None writes o in fp32.
inline constexpr std::span<const openmsa_op> kFp32Operations{};

void check_plan(const core::Plan& plan);
std::size_t workspace_bytes(openmsa_op op, const core::Plan& plan);
void run(openmsa_op op, const core::Problem& problem, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm80
