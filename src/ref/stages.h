// The stages of the layer. Those on one sequence take and return arrays; those named run_* are whole operations of the
// public API. C is the compute type, double or float.
#pragma once

#include "ref/arrays.h"
#include "ref/selection.h"

namespace openmsa::ref {

/// m[r,t,b] of one sequence: [num_heads_kv, seqlen_q, number of kv_blocks], -inf where nothing is visible and where
/// another shard holds the kv_block.
template <class C>
Array<C> block_scores(const core::Problem& problem, const core::Sequence& sequence);

/// The kv_blocks kept of each row of `scores`, which has entries for all that are visible.
template <class C>
Selection choose_blocks(const core::Plan& plan, const core::Sequence& sequence, const Array<C>& scores);

template <class C>
struct Attention {
  Array<C> o;    // [seqlen_q, num_heads_q, head_dim]
  Array<C> lse;  // [seqlen_q, num_heads_q, 1]
};

/// Attention of one sequence over `selection`, or over everything visible when it is nullptr.
template <class C>
Attention<C> attend(const core::Problem& problem, const core::Sequence& sequence, const Selection* selection);

template <class C>
void run_block_scores(const core::Problem& problem);
template <class C>
void run_topk(const core::Problem& problem);
template <class C>
void run_select_blocks(const core::Problem& problem);

/// Sparse over given indices, sparse over its own selection (the whole layer), or dense.
template <class C>
void run_sparse_attention(const core::Problem& problem);
template <class C>
void run_msa_attention(const core::Problem& problem);
template <class C>
void run_dense_attention(const core::Problem& problem);

/// Sparse when the call has topk_indices, else dense.
template <class C>
void run_attention_backward(const core::Problem& problem);
template <class C>
void run_kl_loss(const core::Problem& problem);

/// Both of them, one after the other, over the call's topk_indices.
template <class C>
void run_msa_attention_backward(const core::Problem& problem);

template <class C>
void run_block_recall(const core::Problem& problem);

void run_append_kv(const core::Problem& problem);

/// The selection of whole sequences in the parts of their shards.
template <class C>
void run_select_candidates(const core::Problem& problem);
void run_merge_candidates(const core::Problem& problem);

/// Attention from its parts over different keys.
template <class C>
void run_merge_partials(const core::Problem& problem);

/// An operation in both precisions.
struct Stage {
  openmsa_op op;
  void (*in_double)(const core::Problem& problem);
  void (*in_float)(const core::Problem& problem);
};

// clang-format off
inline constexpr Stage kStages[] = {
    {OPENMSA_OP_BLOCK_SCORES,              run_block_scores<double>,           run_block_scores<float>},
    {OPENMSA_OP_TOPK,                      run_topk<double>,                   run_topk<float>},
    {OPENMSA_OP_SELECT_BLOCKS,             run_select_blocks<double>,          run_select_blocks<float>},
    {OPENMSA_OP_SPARSE_ATTENTION,          run_sparse_attention<double>,       run_sparse_attention<float>},
    {OPENMSA_OP_MSA_ATTENTION,             run_msa_attention<double>,          run_msa_attention<float>},
    {OPENMSA_OP_DENSE_ATTENTION,           run_dense_attention<double>,        run_dense_attention<float>},
    {OPENMSA_OP_SPARSE_ATTENTION_BACKWARD, run_attention_backward<double>,     run_attention_backward<float>},
    {OPENMSA_OP_DENSE_ATTENTION_BACKWARD,  run_attention_backward<double>,     run_attention_backward<float>},
    {OPENMSA_OP_KL_LOSS,                   run_kl_loss<double>,                run_kl_loss<float>},
    {OPENMSA_OP_BLOCK_RECALL,              run_block_recall<double>,           run_block_recall<float>},
    {OPENMSA_OP_APPEND_KV,                 run_append_kv,                      run_append_kv},
    {OPENMSA_OP_MSA_ATTENTION_BACKWARD,    run_msa_attention_backward<double>, run_msa_attention_backward<float>},
    {OPENMSA_OP_SELECT_CANDIDATES,         run_select_candidates<double>,      run_select_candidates<float>},
    {OPENMSA_OP_MERGE_CANDIDATES,          run_merge_candidates,               run_merge_candidates},
    {OPENMSA_OP_MERGE_PARTIALS,            run_merge_partials<double>,         run_merge_partials<float>},
};
// clang-format on

}  // namespace openmsa::ref
