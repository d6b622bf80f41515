/* openmsa_nccl: what the ranks of a layer send each other, C API.
 *
 * openmsa.h has operations for layers that are divided among GPUs and leaves the transport to others. libopenmsa_nccl,
 * which CMake's option OPENMSA_NCCL builds, is one through NCCL, for programs without PyTorch. A process or a thread per
 * GPU creates a layer on the communicator that it has made, and calls, on one stream with the operations of openmsa.h:
 *   openmsa_nccl_merge_candidates   after openmsa_select_candidates
 *   openmsa_nccl_merge_partials     after openmsa_sparse_attention in a shard
 *   openmsa_nccl_gather_keys        before openmsa_msa_attention of a prompt in pieces
 *
 * Rules that hold for every function but openmsa_nccl_create:
 *   - Work is enqueued on the stream and not waited for; nothing is allocated; a call can be captured in a graph.
 *   - All ranks make the same calls in the same order, with the same total_q: NCCL waits for the others on the device. A
 *     call that is refused sends nothing. What became of a rank that is gone, ncclCommGetAsyncError says; to give up
 *     waiting is the caller's, by ncclCommAbort.
 *   - Statuses are those of openmsa.h; OPENMSA_CUDA_ERROR is also a failed call of NCCL. openmsa_nccl_last_error has
 *     the text, openmsa's where one of its operations has refused.
 *   - A layer is read-only after creation, but its communicator serves one thread at a time.
 */
#ifndef OPENMSA_OPENMSA_NCCL_H
#define OPENMSA_OPENMSA_NCCL_H

#include <openmsa/openmsa.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------------- layer --- */

struct ncclComm; /* of nccl.h: ncclComm_t is a pointer to it */

/* How a layer is divided among P ranks. */
typedef enum openmsa_nccl_division OPENMSA_ENUM_BASE {
  OPENMSA_NCCL_HEADS = 1,  /* rank r has the query and KV heads from r H_q / P and r H_kv / P on, with their K and V of
                              whole sequences, and the index keys of shard r; index queries of all heads */
  OPENMSA_NCCL_KEYS = 2,   /* rank r has K, V and index keys of shard r, queries of all heads and, of the results, the
                              query heads from r H_q / P on */
  OPENMSA_NCCL_QUERIES = 3 /* rank r has the queries and keys of two pieces of a prompt; see openmsa_nccl_prompt */
} openmsa_nccl_division;

typedef struct openmsa_nccl_layer openmsa_nccl_layer;

/* Bytes of workspace that openmsa_nccl_create needs on a communicator of `count` ranks. */
OPENMSA_API size_t openmsa_nccl_create_bytes(int32_t count);

/* A layer of all ranks of `comm`, which each of them creates at once. `config` is that of the whole layer, with all
 * heads; its shard_count and shard_rank are those of `comm` or 0. The ranks send each other what they were given, but
 * for num_threads and max_total_k, and wait for it, this once: where two differ, in the version of openmsa too, or where
 * a configuration is refused, all get an error that names both values. `comm` must outlive the layer; workspace and its
 * stream are free afterwards.
 * Returns INVALID_ARGUMENT, UNSUPPORTED (a division or backend that is not served), OUT_OF_MEMORY, CUDA_ERROR. */
OPENMSA_API openmsa_status openmsa_nccl_create(const openmsa_config* config, openmsa_nccl_division division,
                                               struct ncclComm* comm, openmsa_workspace workspace,
                                               openmsa_nccl_layer** layer);
OPENMSA_API void openmsa_nccl_destroy(openmsa_nccl_layer* layer); /* NULL is allowed */

/* Bytes of workspace that the function of that operation, openmsa_nccl_merge_candidates or openmsa_nccl_merge_partials,
 * needs for every call within the capacities. INVALID_ARGUMENT for other operations, and for one that the division does
 * not have. */
OPENMSA_API openmsa_status openmsa_nccl_workspace_bytes(const openmsa_nccl_layer* layer, openmsa_op op, size_t* bytes);

/* What went wrong in this thread's latest failed call of this library; "" when none has failed. */
OPENMSA_API const char* openmsa_nccl_last_error(void);

/* ---------------------------------------------------------------------------------------------------- shards ---
 * Tensors are those of openmsa.h, by name and shape; contiguous, where it is said, in the order that is said. */

/* The selection of whole sequences from each rank's candidates, bit by bit that of one GPU (openmsa_merge_candidates).
 * HEADS: rank s gets the candidates of its heads, 8 topk H_kv / P bytes per query token from every other rank. KEYS: all
 * ranks get all of them, P times as much.
 * Reads candidates [num_heads_kv, total_q, topk], contiguous, as openmsa_select_candidates wrote them in the rank's
 * shard; seqlens_k of whole sequences and, where present, cu_seqlens_q. Writes topk_indices [num_heads_kv / P (HEADS) or
 * num_heads_kv (KEYS), total_q, topk]. */
OPENMSA_API openmsa_status openmsa_nccl_merge_candidates(const openmsa_nccl_layer* layer,
                                                         const openmsa_tensors* tensors, openmsa_workspace workspace);

/* Attention from its parts on all ranks, for the rank's share of the query heads (openmsa_merge_partials). KEYS alone:
 * (head_dim * bytes of o + 4) H_q / P bytes per query token to every other rank.
 * Reads partial_o [1, total_q, num_heads_q, head_dim], the plan's dtype or fp32, and partial_lse [1, total_q,
 * num_heads_q], the o and lse that openmsa_sparse_attention wrote in the rank's shard; in memory heads are outermost,
 * [num_heads_q, total_q, head_dim] and [num_heads_q, total_q], so that what a rank sends to another lies in one piece.
 * And cu_seqlens_q where present. Writes o [total_q, num_heads_q / P, head_dim] and, where present, lse. */
OPENMSA_API openmsa_status openmsa_nccl_merge_partials(const openmsa_nccl_layer* layer, const openmsa_tensors* tensors,
                                                       openmsa_workspace workspace);

/* --------------------------------------------------------------------------------------------------- prompts ---
 * A prompt is cut into 2 P pieces of piece_tokens tokens, whole kv_blocks, of which the last ones may be shorter or
 * empty. Rank r has the pieces r and 2 P - 1 - r, which see as many keys as those of any other rank. The gathered keys
 * are pages of one sequence, in the order of ranks; a rank's pieces are two chunks of it:
 *   cu_seqlens_q = [0, end[0] - begin[0], sum of both lengths]
 *   seqlens_k    = [end[0], end[1]]
 *   block_table  = twice the row of openmsa_nccl_prompt_pages */
typedef struct openmsa_nccl_prompt {
  int64_t piece_tokens; /* of a piece that is not shorter */
  int64_t begin[2];     /* first token of each of the rank's pieces */
  int64_t end[2];       /* the one after its last */
  int64_t num_pages;    /* of the gathered keys: 2 P piece_tokens / page_size */
} openmsa_nccl_prompt;

/* How a prompt of `seqlen` tokens is cut. QUERIES alone, with a page_size. Touches neither GPU nor communicator. */
OPENMSA_API openmsa_status openmsa_nccl_prompt_pieces(const openmsa_nccl_layer* layer, int64_t seqlen,
                                                      openmsa_nccl_prompt* prompt);

/* Writes the num_pages page numbers of the prompt's tokens in their order, a row of block_table, to host memory. */
OPENMSA_API openmsa_status openmsa_nccl_prompt_pages(const openmsa_nccl_layer* layer, int64_t seqlen, int32_t* pages);

/* Keys of all ranks, of a prompt in pieces, as pages. To hide K and V behind the index branch, gather index keys first,
 * and K and V in a call of their own on another stream.
 * Reads k and v, for k_cache and v_cache; index_k, for index_k_cache: one group or both. k, v and index_k are those of the
 * rank's pieces, one after the other, each as long as piece_tokens: [2 piece_tokens, ...], contiguous, with anything past
 * a shorter piece. Writes the caches [num_pages, page_size, ...], contiguous, of the same dtypes. */
OPENMSA_API openmsa_status openmsa_nccl_gather_keys(const openmsa_nccl_layer* layer, const openmsa_tensors* tensors,
                                                    void* stream);

#ifdef __cplusplus
}
#endif
#endif /* OPENMSA_OPENMSA_NCCL_H */
