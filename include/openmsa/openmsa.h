/* openmsa: MiniMax Sparse Attention (MSA), C API.
 *
 * One layer of MSA (arXiv:2606.13392) has two branches. The index branch scores kv_blocks of `block_size` keys with a
 * light product and keeps `topk` of them per query and KV head; the main branch is exact attention over those alone:
 *
 *   s_idx[i,j,r] = index_q[i,r] . index_k[j] / sqrt(index_dim)                                        (token score)
 *   m[i,b,r]     = max over j in kv_block b, j <= i, of s_idx[i,j,r]                                  (block score)
 *   T(i,r)       = tokens j <= i of the kv_blocks chosen for query i and KV head r
 *   lse[i,h]     = log sum_{j in T} exp(softmax_scale * q[i,h] . k[j,r]),      r = h / group_size
 *   o[i,h]       = sum_{j in T} exp(softmax_scale * q[i,h] . k[j,r] - lse[i,h]) * v[j,r]
 *
 * How a call is made:
 *   1. fill an openmsa_config (shapes, capacities, backend) and create a plan: openmsa_plan_create;
 *   2. ask for the workspace of an operation: openmsa_plan_workspace_bytes, and allocate it once;
 *   3. fill an openmsa_tensors with the tensors that the operation names, and call it, as often as wanted.
 *
 * Rules that hold for every function:
 *   - Nothing is printed, nothing aborts: a status comes back, openmsa_last_error() has the text (argument, expected,
 *     got), and when an argument was refused no output has been written.
 *   - The CPU backend works in the caller's workspace alone. The reference backend allocates what it needs.
 *   - A tensor that the operation does not name must be absent; it is refused, not ignored.
 *   - A plan is read-only after creation. Several threads may use one plan at once, each with its own workspace. A child
 *     of fork may use its parent's plans on the CPU, and has one thread where the parent has made a call before.
 *   - Results are bitwise equal from run to run and for every number of threads.
 *   - CUDA backend: tensors and workspace are device memory of the current device; a call enqueues its kernels on
 *     workspace.stream, waits for nothing, and can be captured in a graph. Values in device memory (lengths, page
 *     numbers, block indices) cannot be checked. It serves every operation, but for the teacher's gradients of kl_loss
 *     (d_q, d_k); o in fp32 in sparse_attention, msa_attention and merge_partials. Sequences with few query tokens have
 *     kernels of their own, beside others in a call too.
 *   - Structs that may grow begin with `struct_size`; set it with the init functions or to sizeof(the struct).
 */
#ifndef OPENMSA_OPENMSA_H
#define OPENMSA_OPENMSA_H

#include <stddef.h>
#include <stdint.h>

#define OPENMSA_VERSION_MAJOR 0
#define OPENMSA_VERSION_MINOR 1
#define OPENMSA_VERSION_PATCH 0

#if defined(OPENMSA_STATIC)
#define OPENMSA_API
#elif defined(_WIN32)
#define OPENMSA_API __declspec(dllimport)
#else
#define OPENMSA_API __attribute__((visibility("default")))
#endif

/* In C++ a value outside an enum is then only wrong, not undefined. */
#ifdef __cplusplus
#define OPENMSA_ENUM_BASE : int
extern "C" {
#else
#define OPENMSA_ENUM_BASE
#endif

/* ---------------------------------------------------------------------------------------------------- status --- */

typedef enum openmsa_status OPENMSA_ENUM_BASE {
  OPENMSA_SUCCESS = 0,
  OPENMSA_INVALID_ARGUMENT = 1, /* the call contradicts itself or this header; the message names the tensor */
  OPENMSA_UNSUPPORTED = 2,      /* a legal request that this backend does not serve; the message names the feature */
  OPENMSA_OUT_OF_MEMORY = 3,    /* creating a plan, or the reference backend, could not allocate */
  OPENMSA_INTERNAL = 4,         /* a defect of openmsa; please report it */
  OPENMSA_CUDA_ERROR = 5        /* a CUDA call failed; the message has CUDA's own text */
} openmsa_status;

/* Constant text of a status, for example "invalid argument". */
OPENMSA_API const char* openmsa_status_string(openmsa_status status);

/* What went wrong in this thread's latest failed call; "" when none has failed. Valid until its next openmsa call. */
OPENMSA_API const char* openmsa_last_error(void);

/* "0.1.0" */
OPENMSA_API const char* openmsa_version(void);

/* ---------------------------------------------------------------------------------------------------- tensor --- */

typedef enum openmsa_dtype OPENMSA_ENUM_BASE {
  OPENMSA_FLOAT32 = 1,
  OPENMSA_BFLOAT16 = 2,
  OPENMSA_FLOAT16 = 3,
  OPENMSA_FLOAT64 = 4, /* reference backend only */
  OPENMSA_INT32 = 5,
  OPENMSA_FLOAT8_E4M3 = 6, /* keys alone (kv_dtype, index_dtype), and index_q with OPENMSA_INDEX_Q_CAST; e4m3fn of OCP:
                              no Inf, NaN 0x7f and 0xff, up to 448 */
  OPENMSA_INT64 = 7        /* candidates */
} openmsa_dtype;

enum { OPENMSA_MAX_RANK = 4 };

/* A view of memory that the caller owns. Frozen: this struct will not grow. All zero (data NULL, rank 0) means absent.
 */
typedef struct openmsa_tensor {
  void* data;          /* aligned to its dtype; NULL only where the shape has no element. Inputs are only read. */
  openmsa_dtype dtype; /* element type */
  int32_t rank;        /* number of valid entries in shape and strides */
  int64_t shape[OPENMSA_MAX_RANK];
  int64_t strides[OPENMSA_MAX_RANK]; /* in elements, >= 0 */
} openmsa_tensor;

/* A contiguous (row-major) view of `data` with `rank` entries of `shape`. */
OPENMSA_API openmsa_tensor openmsa_contiguous(void* data, openmsa_dtype dtype, int32_t rank, const int64_t* shape);

/* Size of one element; 0 for a value that is no dtype. */
OPENMSA_API size_t openmsa_dtype_bytes(openmsa_dtype dtype);

/* ------------------------------------------------------------------------------------------------------ plan --- */

typedef enum openmsa_backend OPENMSA_ENUM_BASE {
  OPENMSA_BACKEND_CPU = 1,               /* SIMD and threads; fp32, bf16, fp16; sums in fp32 */
  OPENMSA_BACKEND_REFERENCE = 2,         /* the equations in float64, single-threaded; judges the others */
  OPENMSA_BACKEND_REFERENCE_FLOAT32 = 3, /* the same code in float32: how far rounding alone takes a result */
  OPENMSA_BACKEND_CUDA =
      4 /* sm_80 and later, with kernels for sm_90a; bf16, fp16; tensors in device memory, work enqueued on a stream */
} openmsa_backend;

/* How index_q meets index keys in e4m3; see "fp8 keys". */
typedef enum openmsa_index_q_rounding OPENMSA_ENUM_BASE {
  OPENMSA_INDEX_Q_SCALED = 0, /* rounded to e4m3, each row with a scale that takes its largest number to 448 */
  OPENMSA_INDEX_Q_CAST = 1,   /* rounded to e4m3 as it is, or in e4m3 already */
  OPENMSA_INDEX_Q_EXACT = 2   /* not rounded */
} openmsa_index_q_rounding;

/* Shapes and capacities of one layer. Capacities bound the calls made with the plan and size the workspace. */
typedef struct openmsa_config {
  size_t struct_size;
  openmsa_backend backend;
  openmsa_dtype dtype;       /* of q, k, v, index_q, index_k and, unless said below, their caches */
  int32_t num_heads_q;       /* H_q, a multiple of num_heads_kv; at most 64 query heads per KV head */
  int32_t num_heads_kv;      /* H_kv: KV heads = GQA groups = index query heads */
  int32_t head_dim;          /* d_h: multiple of 8, 8 to 256 */
  int32_t index_dim;         /* d_idx: multiple of 8, 8 to 256 */
  int32_t block_size;        /* B_k, keys per kv_block: power of two, 8 to 256; default 128 */
  int32_t topk;              /* kv_blocks kept per query and KV head: 1 to 64; default 16 */
  int32_t num_init_blocks;   /* first kv_blocks always chosen; default 0 */
  int32_t num_local_blocks;  /* last visible kv_blocks always chosen; default 1. Forced blocks count towards topk; when
                                they exceed it, local blocks come first, newest first, then initial ones from block 0 */
  double softmax_scale;      /* 0: 1/sqrt(head_dim) */
  int32_t page_size;         /* tokens per cache page, a divisor of block_size; 0: keys are contiguous */
  int64_t max_batch;         /* capacity: sequences */
  int64_t max_total_q;       /* capacity: query tokens of all sequences together */
  int64_t max_seqlen_k;      /* capacity: keys of one sequence */
  int32_t num_threads;       /* 0: openmsa_default_threads */
  openmsa_dtype kv_dtype;    /* of k_cache and v_cache. 0: dtype; OPENMSA_FLOAT8_E4M3: with a page_size only */
  openmsa_dtype index_dtype; /* of the keys that index_q meets, index_k_cache or contiguous index_k. 0: dtype;
                                OPENMSA_FLOAT8_E4M3: then index_q_rounding says how index_q meets them */
  int64_t max_total_k;       /* capacity: contiguous keys of all sequences together, rows of none included, in a call of
                                openmsa_kl_loss or of a function whose name ends in _backward.
                                0: on CUDA, where it sizes the workspace, the larger of max_total_q and max_seqlen_k;
                                on the CPU and the reference no bound. Other operations have none */
  openmsa_index_q_rounding index_q_rounding; /* with index_dtype e4m3; otherwise 0 */
  int32_t index_scale_per_block; /* 1, with index_dtype e4m3 and a page_size: index_k_scale has one number per page, and
                                    all of a kv_block are scaled by that of its first page. 0: one per token */
  int32_t shard_count; /* shards of each sequence's kv_blocks, see "Shards"; 0 or 1: the caches hold them all */
  int32_t shard_rank;  /* the shard that the caches hold: 0 to shard_count - 1 */
} openmsa_config;

/* Defaults for block_size, topk, num_local_blocks, batch and backend (CPU, fp32); everything else 0. */
OPENMSA_API void openmsa_config_init(openmsa_config* config);

typedef struct openmsa_plan openmsa_plan;

/* Checks the configuration and fixes the division of work. Made from shapes and capacities alone, never from values.
 * Returns INVALID_ARGUMENT, UNSUPPORTED (lists what is missing), OUT_OF_MEMORY. */
OPENMSA_API openmsa_status openmsa_plan_create(const openmsa_config* config, openmsa_plan** plan);
OPENMSA_API void openmsa_plan_destroy(openmsa_plan* plan); /* NULL is allowed */

typedef enum openmsa_op OPENMSA_ENUM_BASE {
  OPENMSA_OP_BLOCK_SCORES = 0,
  OPENMSA_OP_TOPK = 1,
  OPENMSA_OP_SELECT_BLOCKS = 2,
  OPENMSA_OP_SPARSE_ATTENTION = 3,
  OPENMSA_OP_MSA_ATTENTION = 4,
  OPENMSA_OP_DENSE_ATTENTION = 5,
  OPENMSA_OP_SPARSE_ATTENTION_BACKWARD = 6,
  OPENMSA_OP_DENSE_ATTENTION_BACKWARD = 7,
  OPENMSA_OP_KL_LOSS = 8,
  OPENMSA_OP_BLOCK_RECALL = 9,
  OPENMSA_OP_APPEND_KV = 10,
  OPENMSA_OP_MSA_ATTENTION_BACKWARD = 11,
  OPENMSA_OP_SELECT_CANDIDATES = 12,
  OPENMSA_OP_MERGE_CANDIDATES = 13,
  OPENMSA_OP_MERGE_PARTIALS = 14,
  OPENMSA_OP_COUNT = 15
} openmsa_op;

/* Bytes of workspace that `op` needs for every call within the plan's capacities; 0 is possible. */
OPENMSA_API openmsa_status openmsa_plan_workspace_bytes(const openmsa_plan* plan, openmsa_op op, size_t* bytes);

/* --------------------------------------------------------------------------------------------------- tensors --- */

/* The tensors of a call, by name. Dtypes are the plan's unless said. The last dimension, channels, has stride 1; all
 * other strides, and every stride of tensors without channels (int32 tensors, lse, block_scores, figures), are free, as
 * long as no output overlaps itself or an input.
 *
 * Sequences. Query t (0-based) of a sequence with seqlen_q queries and seqlen_k keys stands at position
 * seqlen_k - seqlen_q + t; it sees keys 0 to its position. A negative position sees nothing: o = 0, lse = -inf,
 * topk_indices = -1. The same is written for rows past cu_seqlens_q[batch].
 * Keys are either contiguous (k, v, index_k, with cu_seqlens_k) or, when the plan has a page_size, paged (the *_cache
 * tensors with block_table and seqlens_k): token j of a sequence is entry j % page_size of page block_table[b, j /
 * page_size]. Whatever lies past seqlens_k, in a page or after it, is never used.
 *
 * fp8 keys. A number in e4m3 stands for its value times a scale: k_scale and v_scale with kv_dtype e4m3, index_k_scale
 * with index_dtype e4m3. An absent scale is 1; [1] is one scale for all; else there is one per token, in caches by its
 * place there, page * page_size + entry, or with index_scale_per_block one per page, of which that of a kv_block's
 * first page counts for the whole kv_block. Attention uses k and v times their scales, and q as it is. In the index
 * branch
 *   s_idx[i,j,r] = (index_q8[i,r] . index_k[j]) * a[i,r] * index_k_scale[j] / sqrt(index_dim)
 * and index_q_rounding says how index_q becomes index_q8:
 *   SCALED   index_q8 = e4m3(index_q * (448 / amax)),   a = amax / 448,   amax = max |index_q[i,r,:]|
 *   CAST     index_q8 = e4m3(index_q), or index_q itself where it is e4m3;   a = 1
 *   EXACT    index_q8 = index_q;   a = 1
 * e4m3() rounds fp32 to nearest even, and to 448 what is larger, Inf too; NaN stays NaN. amax ignores NaN. A row with
 * amax below 2^-117, where fp32 has no room left for 448 / amax and amax / 448, is rounded as zeros (with scale 0).
 * CAST takes to zero what is at most 2^-10, and saturates as well: a cast that makes NaN of what is too large differs
 * there.
 *
 * Shards. With shard_count > 1 the caches hold a shard of every sequence, for example those of one GPU of several:
 * kv_block b of a sequence is kv_block b / shard_count of shard b % shard_count, and lies there whole. seqlens_k counts
 * the keys of the whole sequence, and positions and kv_block numbers are those in it. A row of block_table lists the
 * pages of the shard's kv_blocks alone, one kv_block after the other: token j, of kv_block b = j / block_size, is entry
 * j % page_size of page block_table[., entry],
 *   entry = (b / shard_count) * (block_size / page_size) + (j % block_size) / page_size
 * Nothing is read of the row of a sequence of which the shard has no kv_block. Keys in shards are paged. Such plans
 * serve openmsa_select_candidates, openmsa_merge_candidates, openmsa_sparse_attention, openmsa_merge_partials and
 * openmsa_append_kv; whatever else is asked of them is refused.
 *
 * Candidates. What competes for a place in a selection is one number, a kv_block b with its block score in fp32,
 *   candidate = key * 2^32 + (2^32 - 1 - b),   key = the score's bits as int32, where it is negative with all but the
 *                                                    sign inverted (so that keys are ordered as scores are);
 *                                                    0 for -0; -2^31 + 1 for NaN
 * and INT64_MIN is none. The greater one is chosen first: the higher score, the lower kv_block, NaN last. Who made them
 * merges them: CUDA's scores lack a positive factor, of 1/sqrt(index_dim), a[i,r] and an index_k_scale of [1]. */
typedef struct openmsa_tensors {
  size_t struct_size;

  /* sequences */
  openmsa_tensor cu_seqlens_q; /* [batch + 1] int32 prefix sums from 0; absent: one sequence of all total_q queries */
  openmsa_tensor cu_seqlens_k; /* [batch + 1] int32, contiguous keys; absent: one sequence of all total_k keys */
  openmsa_tensor seqlens_k;    /* [batch] int32 keys of each sequence, paged only (and openmsa_topk) */
  openmsa_tensor block_table;  /* [batch, max_pages] int32 page numbers, paged only; entries past seqlens_k are free */

  /* layer inputs, after projection, norm and rotary embedding */
  openmsa_tensor q;       /* [total_q, num_heads_q, head_dim] */
  openmsa_tensor k;       /* [total_k, num_heads_kv, head_dim] */
  openmsa_tensor v;       /* [total_k, num_heads_kv, head_dim] */
  openmsa_tensor index_q; /* [total_q, num_heads_kv, index_dim], with OPENMSA_INDEX_Q_CAST plan's dtype or e4m3 */
  openmsa_tensor index_k; /* [total_k, index_dim] */

  /* paged caches */
  openmsa_tensor k_cache;       /* [num_pages, page_size, num_heads_kv, head_dim] */
  openmsa_tensor v_cache;       /* [num_pages, page_size, num_heads_kv, head_dim] */
  openmsa_tensor index_k_cache; /* [num_pages, page_size, index_dim] */

  /* scales of fp8 keys, fp32, positive: absent, [1], or per token or kv_block */
  openmsa_tensor k_scale;       /* [num_heads_kv, num_pages * page_size] */
  openmsa_tensor v_scale;       /* [num_heads_kv, num_pages * page_size] */
  openmsa_tensor index_k_scale; /* [num_pages * page_size], or contiguous [total_k]. One number is always [1];
                                   [num_pages] with index_scale_per_block */

  /* selection */
  openmsa_tensor block_scores; /* [num_heads_kv, total_q, >= number of kv_blocks of the longest sequence] fp32 */
  openmsa_tensor topk_indices; /* [num_heads_kv, total_q, topk] int32 kv_block numbers inside the sequence. Written
                                  ascending, -1 padded; read as a prefix in any order, then -1: -1 ends a row. A number
                                  after it is refused; on CUDA, which cannot check, the row's results are undefined */

  /* results */
  openmsa_tensor o;   /* [total_q, num_heads_q, head_dim], plan's dtype or fp32 */
  openmsa_tensor lse; /* [total_q, num_heads_q] fp32 (fp64 too on the reference), natural logarithm */

  /* gradients: d_x has the shape of x; those written may be in the plan's dtype or in fp32 */
  openmsa_tensor d_o;
  openmsa_tensor d_q;
  openmsa_tensor d_k;
  openmsa_tensor d_v;
  openmsa_tensor d_index_q;
  openmsa_tensor d_index_k;

  /* training figures, fp32 (fp64 too on the reference) */
  openmsa_tensor kl_loss;      /* [1] */
  openmsa_tensor block_recall; /* [num_heads_kv, total_q] */
  openmsa_tensor score_recall; /* [num_heads_kv, total_q] */

  /* optional inputs of training, fp32 (fp64 too on the reference) */
  openmsa_tensor d_lse;      /* [total_q, num_heads_q] gradient into lse; absent: 0 */
  openmsa_tensor kl_weights; /* [total_q] weight of each query in kl_loss; absent: 1/(N H_kv), the mean */

  /* shards and what they exchange */
  openmsa_tensor candidates;     /* [num_heads_kv, total_q, topk] int64, descending, then INT64_MIN */
  openmsa_tensor all_candidates; /* [shard_count, num_heads_kv, total_q, topk] int64: candidates of each shard */
  openmsa_tensor partial_o;   /* [shard_count, total_q, num_heads_q, head_dim] o of each shard, plan's dtype or fp32 */
  openmsa_tensor partial_lse; /* [shard_count, total_q, num_heads_q] fp32 (fp64 too on the reference) */
} openmsa_tensors;

/* All tensors absent, struct_size set. */
OPENMSA_API void openmsa_tensors_init(openmsa_tensors* tensors);

/* Where a call runs. */
typedef struct openmsa_workspace {
  void* data;   /* 64-byte aligned (CUDA: 256-byte aligned device memory); contents undefined before and after. Of
                   the bytes that the operation needs none may be those of a tensor of the call */
  size_t bytes; /* at least openmsa_plan_workspace_bytes */
  void* stream; /* CUDA backend: the cudaStream_t that the work is enqueued on; NULL on the CPU */
} openmsa_workspace;

/* ------------------------------------------------------------------------------------------------ operations ---
 * "Keys" below means k, v (and index_k) with optional cu_seqlens_k, or the caches with seqlens_k and block_table; and
 * the scales of those that are fp8.
 * Every operation takes optional cu_seqlens_q. All return SUCCESS, INVALID_ARGUMENT, UNSUPPORTED or INTERNAL. */

/* block_scores[r,i,b] = m[i,b,r] of the index branch for visible kv_blocks, -inf for the others up to the row's end.
 * A NaN token score loses to every number; a kv_block with nothing but NaN scores NaN.
 * Reads index_q and index_k; writes block_scores. */
OPENMSA_API openmsa_status openmsa_block_scores(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                openmsa_workspace workspace);

/* Exp-free top-k over a score matrix: forced kv_blocks first, then visible ones of highest score; equal scores: the
 * lower kv_block wins; NaN loses to every number. Reads seqlens_k and block_scores (never past a row's visible
 * kv_blocks); writes topk_indices. */
OPENMSA_API openmsa_status openmsa_topk(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                        openmsa_workspace workspace);

/* openmsa_block_scores and openmsa_topk in one pass; scores are never stored.
 * Reads index_q and index_k; writes topk_indices. */
OPENMSA_API openmsa_status openmsa_select_blocks(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                 openmsa_workspace workspace);

/* Exact attention over the kv_blocks in topk_indices. A number outside the sequence or twice in a row is refused; a
 * kv_block after the query contributes nothing, nor does one that lies in another shard: then o and lse are a part of
 * the result, which openmsa_merge_partials completes; a query of which the shard has nothing gets o = 0, lse = -inf.
 * Reads q, keys, topk_indices; writes o and, where present, lse. */
OPENMSA_API openmsa_status openmsa_sparse_attention(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                    openmsa_workspace workspace);

/* The whole layer: selection, then attention over it.
 * Reads q, index_q, keys with index_k; writes o and, where present, lse and topk_indices. */
OPENMSA_API openmsa_status openmsa_msa_attention(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                 openmsa_workspace workspace);

/* Dense causal GQA: T(i,r) = all j <= i. Reads q, keys; writes o and, where present, lse. */
OPENMSA_API openmsa_status openmsa_dense_attention(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                   openmsa_workspace workspace);

/* Gradient of openmsa_sparse_attention; the selection itself has none.
 *   p = exp(softmax_scale * q.k - lse),  D[i,h] = d_o[i,h] . o[i,h] - d_lse[i,h],  ds = p * (d_o.v - D)
 *   d_q = softmax_scale * sum_j ds k,    d_k = softmax_scale * sum_i ds q,    d_v = sum_i p d_o
 * d_lse is what a loss that uses lse itself adds: a z-loss, or partial results merged by their lse. A key that nobody
 * chose gets exactly 0. A query that saw nothing (lse = -inf) gives nothing, whatever its d_lse. Contiguous keys only.
 * Reads q, k, v, topk_indices, o, lse, d_o and, where present, d_lse; writes d_q, d_k, d_v. */
OPENMSA_API openmsa_status openmsa_sparse_attention_backward(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                             openmsa_workspace workspace);

/* Gradient of openmsa_dense_attention, as openmsa_sparse_attention_backward without topk_indices. */
OPENMSA_API openmsa_status openmsa_dense_attention_backward(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                            openmsa_workspace workspace);

/* KL loss that trains the index branch, and its gradients.
 *   P_idx[i,.,r] = softmax over T(i,r) of s_idx          P[i,.,r] = mean over the group's heads of exp(scale q.k - lse)
 *   kl_loss      = sum_{i,r} w[i] KL(P || P_idx)         g[i,j,r] = w[i] (P_idx - P)
 *   d_index_q[i,r] = 1/sqrt(index_dim) sum_j g index_k[j]
 *   d_index_k[j]   = 1/sqrt(index_dim) sum_{i,r} g index_q[i,r]
 * w[i] is kl_weights[i] or, where that is absent, 1/(N H_kv), with N the query rows of all sequences: the mean. Losses
 * and gradients of the parts of a batch (micro-batches, ranks) add up to those of the whole when every part has the
 * weights of the whole. A row of weight 0 (padding) gives exactly nothing, even where its q, index_q or lse is NaN; as
 * does one that saw nothing (lse = -inf for all heads of the group).
 * T(i,r) is the selection in topk_indices, or all j <= i when topk_indices is absent; lse must come from attention over
 * the same T. Nothing flows to the teacher P, unless d_q and d_k are asked for (an ablation):
 *   u[i,j,r]  = w[i] log(P / P_idx) / group_size         ds[i,h,j] = p[i,h,j] * (u[i,j,r] - sum_j p[i,h,j] u[i,j,r])
 *   d_q[i,h]  = softmax_scale * sum_j ds k               d_k[j,r]  = softmax_scale * sum_{i,h} ds q
 * Contiguous keys of the plan's dtype only.
 * Reads q, k, lse, index_q, index_k and, where present, topk_indices and kl_weights; writes those present of kl_loss,
 * d_index_q, d_index_k, d_q, d_k, at least one. */
OPENMSA_API openmsa_status openmsa_kl_loss(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                           openmsa_workspace workspace);

/* The gradient of the sparse layer in one call: d_q, d_k and d_v of openmsa_sparse_attention_backward, and kl_loss,
 * d_index_q and d_index_k of openmsa_kl_loss over the same topk_indices. Both need the probabilities exp(scale q.k - lse),
 * which a backend may compute once. Nothing flows to the teacher: d_q and d_k are those of attention alone. A row of
 * weight 0 in kl_weights has its full share of them. Contiguous keys of the plan's dtype only.
 * Reads q, k, v, index_q, index_k, topk_indices, o, lse, d_o and, where present, d_lse and kl_weights; writes d_q, d_k,
 * d_v and those present of kl_loss, d_index_q, d_index_k, at least one. */
OPENMSA_API openmsa_status openmsa_msa_attention_backward(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                          openmsa_workspace workspace);

/* Health of a selection against dense attention, per KV head and query:
 *   mass[b]      = mean over the group's heads of the dense attention probability that falls in kv_block b
 *   block_recall = share of the n kv_blocks of highest mass that are among the n chosen ones that the query sees
 *   score_recall = sum of mass over the chosen kv_blocks
 * A query that sees nothing has recall 1. Reads q, k, topk_indices; writes block_recall and score_recall, at least one.
 * Contiguous keys only. */
OPENMSA_API openmsa_status openmsa_block_recall(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                openmsa_workspace workspace);

/* Stores new tokens in paged caches: row cu_seqlens_q[b] + t of k, v and index_k becomes token
 * seqlens_k[b] - seqlen_q[b] + t of sequence b, so that seqlens_k is what the following attention takes. Rows of a
 * sequence with seqlens_k = 0 are padding and are not stored, nor are tokens of other shards.
 * Reads seqlens_k and block_table; k and v, for k_cache and v_cache; index_k, for index_k_cache. k, v and their caches
 * come together or not at all, and so do index_k and its cache: one group or both.
 * New tokens have the plan's dtype. Into an fp8 cache they go as
 *   e4m3(x)               where its scale is absent;
 *   e4m3(x / scale)       where it is [1]: that scale is read, somebody has calibrated it;
 *   e4m3(x * (448 / amax)) with scale = amax / 448, which is written, where it is per token: amax is that of the token
 *                          (of one KV head); where amax is 0 or below 2^-117 zeros are stored, with scale 0;
 *   e4m3(x / scale)        with the scale of its kv_block: amax / 28 of the kv_block's first token, which is written
 *                          with that token, or 1 where amax is below 2^-117 or infinite. 28 of e4m3's 448 leave the
 *                          tokens that follow room to be 16 times as large, and what is larger still becomes 448. Their
 *                          scale follows from the first token where that is in the same call, else it is read;
 * in fp32. [1] is one scale for all, and read, also in a cache of one page. */
OPENMSA_API openmsa_status openmsa_append_kv(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                             openmsa_workspace workspace);

/* The index branch of one shard: the best of its kv_blocks with their scores. Of the kv_blocks that a query sees, those
 * that openmsa_select_blocks takes in any case, num_init_blocks and num_local_blocks, are left out; of the others in
 * the shard come the best, as many as have a place beside these in topk_indices. Without shards it is all kv_blocks
 * that compete.
 * Reads index_q and index_k; writes candidates. */
OPENMSA_API openmsa_status openmsa_select_candidates(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                     openmsa_workspace workspace);

/* The selection of whole sequences from the candidates of all their shards, bit by bit that of openmsa_select_blocks
 * without shards on the same backend. (The reference in float64 has finer scores than a candidate: it gives the
 * selection of its block_scores rounded to fp32.) Slice s of all_candidates is what openmsa_select_candidates wrote
 * with shard_rank = s. Refused are numbers that it cannot have written: a kv_block of another shard, one that is not
 * visible or taken in any case, one that comes twice, rows that do not descend; on CUDA, which cannot check, they are
 * undefined.
 * Reads seqlens_k, of whole sequences, and all_candidates; writes topk_indices. shard_rank means nothing here. */
OPENMSA_API openmsa_status openmsa_merge_candidates(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                    openmsa_workspace workspace);

/* Attention from its parts over different keys, what openmsa_sparse_attention wrote with shard_rank = s being slice s:
 *   lse[i,h] = log sum_s exp(partial_lse[s,i,h])
 *   o[i,h]   = sum_s exp(partial_lse[s,i,h] - lse[i,h]) * partial_o[s,i,h],      s ascending
 * A slice with partial_lse = -inf gives nothing, whatever its partial_o; where all are, o = 0 and lse = -inf. A
 * partial_lse that is NaN or +inf makes o and lse of its query and head NaN. Rows of no sequence get o = 0, lse = -inf.
 * Reads partial_o and partial_lse; writes o and, where present, lse. shard_rank means nothing here. */
OPENMSA_API openmsa_status openmsa_merge_partials(const openmsa_plan* plan, const openmsa_tensors* tensors,
                                                  openmsa_workspace workspace);

/* The operation by number; what bindings and tools use. */
OPENMSA_API openmsa_status openmsa_run(const openmsa_plan* plan, openmsa_op op, const openmsa_tensors* tensors,
                                       openmsa_workspace workspace);

/* What openmsa_run refuses of these tensors, and nothing else: nothing is run or written, and no workspace is needed. */
OPENMSA_API openmsa_status openmsa_check(const openmsa_plan* plan, openmsa_op op, const openmsa_tensors* tensors);

/* ----------------------------------------------------------------------------------------------------- names ---
 * The names of operations and tensors and what is known of them, so that bindings, tools and tests need no list of
 * their own. A tensor's name is that of its member in openmsa_tensors, an operation's that of its function without
 * "openmsa_". All texts are constant. */

/* "msa_attention" for OPENMSA_OP_MSA_ATTENTION; NULL for a value that is no operation. */
OPENMSA_API const char* openmsa_op_name(openmsa_op op);

/* The operation of that name. Returns INVALID_ARGUMENT when there is none. */
OPENMSA_API openmsa_status openmsa_op_from_name(const char* name, openmsa_op* op);

/* Number of members of openmsa_tensors that are tensors. */
OPENMSA_API int32_t openmsa_tensor_count(void);

/* Name of tensor 0 to openmsa_tensor_count() - 1, in the order of openmsa_tensors; NULL outside of these. */
OPENMSA_API const char* openmsa_tensor_name(int32_t tensor);

/* The member of `tensors` of that name; NULL when there is none, or none within tensors->struct_size. */
OPENMSA_API openmsa_tensor* openmsa_tensors_at(openmsa_tensors* tensors, const char* name);

/* Name of what a dimension of a tensor counts, as in the comments of openmsa_tensors: "total_q", "num_heads_kv",
 * "batch + 1", "1"; "key_tokens" in the scales of fp8 keys. NULL past the last dimension, and for no tensor's name. */
OPENMSA_API const char* openmsa_tensor_extent(const char* name, int32_t dimension);

/* Element type of a tensor under `config`. Of the two that a result may have, the plan's dtype; fp32 for lse,
 * block_scores and figures, fp64 with dtype fp64. 0 for no tensor's name. */
OPENMSA_API openmsa_dtype openmsa_tensor_dtype(const openmsa_config* config, const char* name);

/* Bits of openmsa_tensor_use. A tensor with none of them must be absent. */
typedef enum openmsa_use OPENMSA_ENUM_BASE {
  OPENMSA_READS = 1,     /* read, required */
  OPENMSA_MAY_READ = 2,  /* read where present */
  OPENMSA_WRITES = 4,    /* written, required */
  OPENMSA_MAY_WRITE = 8, /* written where present */
} openmsa_use;

/* What operation `op` does with a tensor under `config`, which says where keys lie: bits of openmsa_use; 0 for what is
 * no operation or no tensor's name. */
OPENMSA_API int32_t openmsa_tensor_use(const openmsa_config* config, openmsa_op op, const char* name);

/* -------------------------------------------------------------------------------------------------- machine --- */

/* Instruction sets of the CPU backend here, best first, that of bf16 products before all: "AMX_BF16 AVX3 AVX2". Static. */
OPENMSA_API const char* openmsa_cpu_features(void);

/* Threads of a CPU plan with num_threads = 0: the fewest of the cores in this process's affinity, of those that its
 * control groups' CPU quotas amount to, rounded up, and of the environment's OPENMSA_NUM_THREADS or, where that is not
 * set, OMP_NUM_THREADS. Returns INVALID_ARGUMENT for an OPENMSA_NUM_THREADS that is no positive number, as creating such
 * a plan does. */
OPENMSA_API openmsa_status openmsa_default_threads(int32_t* num_threads);

/* The GPU that the CUDA backend runs on, or why it cannot, for example "no NVIDIA driver was found". Constant text. */
OPENMSA_API const char* openmsa_cuda_device(void);

#ifdef __cplusplus
}
#endif
#endif /* OPENMSA_OPENMSA_H */
