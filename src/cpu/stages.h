// The operations of the CPU backend. Each takes its scratch from the arena; run with a measuring arena, plan_* tells
// how much that is, the room of Loops aside.
#pragma once

#include "core/arena.h"
#include "core/problem.h"
#include "cpu/loops.h"

namespace openmsa::cpu {

void block_scores(const core::Problem& problem, core::Arena& arena, const Loops& loops);
void topk(const core::Problem& problem, core::Arena& arena, const Loops& loops);
/// Of whole sequences or, where candidates are present, a shard's part.
void select_blocks(const core::Problem& problem, core::Arena& arena, const Loops& loops);
void merge_candidates(const core::Problem& problem, core::Arena& arena, const Loops& loops);
void sparse_attention(const core::Problem& problem, core::Arena& arena, const Loops& loops);
void dense_attention(const core::Problem& problem, core::Arena& arena, const Loops& loops);
/// The parts of dense attention: sequences of few queries, and all others.
void dense_decode(const core::Problem& problem, core::Arena& arena, const Loops& loops);
void dense_prefill(const core::Problem& problem, core::Arena& arena, const Loops& loops);
/// Sparse when topk_indices is present, else dense.
void attention_backward(const core::Problem& problem, core::Arena& arena, const Loops& loops);
void kl_loss(const core::Problem& problem, core::Arena& arena, const Loops& loops);
/// Both of them, over the call's topk_indices.
void msa_attention_backward(const core::Problem& problem, core::Arena& arena, const Loops& loops);
void block_recall(const core::Problem& problem, core::Arena& arena, const Loops& loops);
void msa_attention(const core::Problem& problem, core::Arena& arena, const Loops& loops);
void append_kv(const core::Problem& problem, core::Arena& arena, const Loops& loops);
void merge_partials(const core::Problem& problem, core::Arena& arena, const Loops& loops);

/// Workspace of each operation within the plan's capacities, carved from a measuring arena.
void plan_block_scores(const core::Plan& plan, core::Arena& arena);
void plan_select_blocks(const core::Plan& plan, core::Arena& arena);
void plan_sparse_attention(const core::Plan& plan, core::Arena& arena);
void plan_dense_attention(const core::Plan& plan, core::Arena& arena);
void plan_msa_attention(const core::Plan& plan, core::Arena& arena);
void plan_dense_decode(const core::Plan& plan, core::Arena& arena);
void plan_dense_prefill(const core::Plan& plan, core::Arena& arena);
void plan_attention_backward(const core::Plan& plan, core::Arena& arena);
void plan_kl_loss(const core::Plan& plan, core::Arena& arena);
void plan_msa_attention_backward(const core::Plan& plan, core::Arena& arena);
void plan_block_recall(const core::Plan& plan, core::Arena& arena);

/// Operations that run one after the other in the same scratch: as much as the larger takes.
inline void plan_in_turn(void (*first)(const core::Plan&, core::Arena&),
                         void (*second)(const core::Plan&, core::Arena&), const core::Plan& plan, core::Arena& arena) {
  core::Arena one = arena, other = arena;
  first(plan, one);
  second(plan, other);
  arena = one.used() > other.used() ? one : other;
}

/// An operation of the C API.
struct Stage {
  openmsa_op op;
  void (*plan)(const core::Plan& plan, core::Arena& arena);  // nullptr: no scratch
  void (*run)(const core::Problem& problem, core::Arena& arena, const Loops& loops);
};

// clang-format off
inline constexpr Stage kStages[] = {
    {OPENMSA_OP_BLOCK_SCORES,              plan_block_scores,           block_scores},
    {OPENMSA_OP_TOPK,                      nullptr,                     topk},
    {OPENMSA_OP_SELECT_BLOCKS,             plan_select_blocks,          select_blocks},
    {OPENMSA_OP_SPARSE_ATTENTION,          plan_sparse_attention,       sparse_attention},
    {OPENMSA_OP_MSA_ATTENTION,             plan_msa_attention,          msa_attention},
    {OPENMSA_OP_DENSE_ATTENTION,           plan_dense_attention,        dense_attention},
    {OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, plan_attention_backward,     attention_backward},
    {OPENMSA_OP_DENSE_ATTENTION_BACKWARD,  plan_attention_backward,     attention_backward},
    {OPENMSA_OP_KL_LOSS,                   plan_kl_loss,                kl_loss},
    {OPENMSA_OP_BLOCK_RECALL,              plan_block_recall,           block_recall},
    {OPENMSA_OP_APPEND_KV,                 nullptr,                     append_kv},
    {OPENMSA_OP_MSA_ATTENTION_BACKWARD,    plan_msa_attention_backward, msa_attention_backward},
    {OPENMSA_OP_SELECT_CANDIDATES,         plan_select_blocks,          select_blocks},
    {OPENMSA_OP_MERGE_CANDIDATES,          nullptr,                     merge_candidates},
    {OPENMSA_OP_MERGE_PARTIALS,            nullptr,                     merge_partials},
};
// clang-format on

/// Rows that belong to no sequence: sets those of an output whose dimension `axis` counts queries, or those of a
/// gradient of keys (to 0). Absent outputs are left alone.
void write_query_padding(const core::Problem& problem, const openmsa_tensor& tensor, int axis, double value);
void write_key_padding(const core::Problem& problem, const openmsa_tensor& tensor);
/// o and lse of rows that belong to no sequence.
void write_attention_padding(const core::Problem& problem);

}  // namespace openmsa::cpu
