// The kernels for Hopper (compute capability 9.0, sm_90a): which plans and operations they serve, and their order in a
// call.
#pragma once

#include <openmsa/openmsa.h>

#include <cstddef>

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"

namespace openmsa::cuda::sm90 {

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
                                             OPENMSA_OP_APPEND_KV,
                                             OPENMSA_OP_SELECT_CANDIDATES,
                                             OPENMSA_OP_MERGE_CANDIDATES,
                                             OPENMSA_OP_MERGE_PARTIALS};

/// Those that may write o in fp32: attention over a selection, whose results may be parts, and what merges them.
inline constexpr openmsa_op kFp32Operations[] = {OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_OP_MSA_ATTENTION,
                                                 OPENMSA_OP_MERGE_PARTIALS};

void check_plan(const core::Plan& plan);
std::size_t workspace_bytes(openmsa_op op, const core::Plan& plan);
void run(openmsa_op op, const core::Problem& problem, core::Arena arena, Launch launch);

}  // namespace openmsa::cuda::sm90
