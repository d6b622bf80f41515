// Gradients for training, and the workspace of a call within the plan's capacities.
#pragma once

#include "core/arena.h"
#include "core/problem.h"
#include "cuda/common/launch.h"
#include "cuda/generic/training/tile_kernels.h"

namespace openmsa::cuda::generic::training {

/// d_q, d_k and d_v of attention over topk_indices or, where they are absent, of dense attention.
void attention_backward(const core::Problem& problem, core::Arena arena, const TileKernels& kernels, Launch launch);
std::size_t attention_backward_bytes(const core::Plan& plan, bool is_dense);

/// openmsa_kl_loss without gradients of the teacher.
void kl_loss(const core::Problem& problem, core::Arena arena, const TileKernels& kernels, Launch launch);
std::size_t kl_loss_bytes(const core::Plan& plan);

/// Both over one selection: the gradient of attention gives the loss its teacher.
void msa_attention_backward(const core::Problem& problem, core::Arena arena, const TileKernels& kernels, Launch launch);
std::size_t msa_attention_backward_bytes(const core::Plan& plan);

}  // namespace openmsa::cuda::generic::training
