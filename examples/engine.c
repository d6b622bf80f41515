/* A serving engine: requests share a paged cache; a step is one batch of chunks of prompts and of single new tokens.
 * The model is one layer. Noise seeded by a token stands for projections; the largest output is the next token. */
#include <openmsa/openmsa.h>
#include <stdio.h>
#include <stdlib.h>

#define FP32(data, rank, ...) openmsa_contiguous(data, OPENMSA_FLOAT32, rank, (int64_t[]){__VA_ARGS__})
#define INT32(data, rank, ...) openmsa_contiguous(data, OPENMSA_INT32, rank, (int64_t[]){__VA_ARGS__})
enum { kHeadsQ = 4, kHeadsKv = 2, kDim = 64, kQ = kHeadsQ * kDim, kKv = kHeadsKv * kDim, kPageSize = 32, kPages = 24 };
enum { kMaxPages = 12, kBatch = 5, kNewTokens = 20, kMaxChunk = 128, kRows = kBatch * kMaxChunk };
typedef struct {
  int32_t tokens[kMaxPages * kPageSize]; /* prompt, then new ones */
  int prompt, known, cached, pages;      /* tokens of the prompt, known, in the cache; pages held: 0 before and after */
} Request;
static Request requests[kBatch] = {{.prompt = 300}, {.prompt = 20}, {.prompt = 150}, {.prompt = 7}, {.prompt = 350}};
static int32_t block_table[kBatch][kMaxPages], cu_seqlens_q[kBatch + 1], seqlens_k[kBatch], spare[kPages], num_spare;
static float k_cache[kPages][kPageSize][kKv], v_cache[kPages][kPageSize][kKv], index_k_cache[kPages][kPageSize][kDim];
/* One step. Shapes never change: rows after the last token are padding, requests without keys are idle. */
static float q[kRows][kQ], k[kRows][kKv], v[kRows][kKv], index_q[kRows][kKv], index_k[kRows][kDim], o[kRows][kQ];

static void check(openmsa_status status) {
  if (status != OPENMSA_SUCCESS) fprintf(stderr, "engine: %s\n", openmsa_last_error()), exit(1);
}

static void noise(float* row, int count, uint32_t seed) {
  for (int i = 0; i < count; ++i) row[i] = (float)(int32_t)(seed = seed * 1664525u + 1013904223u) * 0x1p-30f;
}

/* Puts the next tokens of each request, at most `chunk`, into the step; returns how many there are in all. */
static int schedule(int chunk) {
  int row = 0;
  for (int b = 0; b < kBatch; ++b, cu_seqlens_q[b] = row) {
    Request* r = &requests[b];
    const int pages = (r->prompt + kNewTokens + kPageSize - 1) / kPageSize; /* all that it will ever need */
    const int joins = r->cached + r->pages == 0 && pages <= num_spare;
    while (joins && r->pages < pages) block_table[b][r->pages++] = spare[--num_spare];
    const int left = r->pages > 0 ? r->known - r->cached : 0, end = r->cached + (left < chunk ? left : chunk);
    for (int t = r->cached; t < end; ++t, ++row) {
      const uint32_t seed = (uint32_t)r->tokens[t] * 2654435761u + (uint32_t)t * 40503u;
      noise(q[row], kQ, seed), noise(k[row], kKv, seed + 1), noise(v[row], kKv, seed + 2);
      noise(index_q[row], kKv, seed + 3), noise(index_k[row], kDim, seed + 4);
    }
    seqlens_k[b] = r->pages > 0 ? end : 0;
  }
  return row;
}

/* A request whose last known token was in the step gets a new one; a complete one gives its pages back. */
static void advance(void) {
  for (int b = 0; b < kBatch; ++b) {
    Request* r = &requests[b];
    if (r->pages == 0) continue;
    const float* row = o[cu_seqlens_q[b + 1] - 1];
    int best = 0;
    for (int i = 1; i < kQ; ++i) best = row[i] > row[best] ? i : best;
    r->cached = seqlens_k[b];
    if (r->cached == r->known) r->tokens[r->known++] = best;
    while (r->known == r->prompt + kNewTokens && r->pages > 0) spare[num_spare++] = block_table[b][--r->pages];
  }
}

int main(int argc, char** argv) {
  const int chunk = argc > 1 ? atoi(argv[1]) : kMaxChunk; /* most tokens of a request per step */
  if (chunk < 1 || chunk > kMaxChunk) return fprintf(stderr, "engine: expected a chunk of 1 to %d\n", kMaxChunk), 2;
  openmsa_config config;
  openmsa_config_init(&config);
  config.num_heads_q = kHeadsQ, config.num_heads_kv = kHeadsKv, config.head_dim = config.index_dim = kDim;
  config.block_size = config.page_size = kPageSize, config.topk = 4;
  config.max_batch = kBatch, config.max_total_q = kRows, config.max_seqlen_k = kMaxPages * kPageSize;
  openmsa_plan* plan;
  check(openmsa_plan_create(&config, &plan));
  size_t bytes; /* openmsa_append_kv needs none on the CPU */
  check(openmsa_plan_workspace_bytes(plan, OPENMSA_OP_MSA_ATTENTION, &bytes));
  const openmsa_workspace workspace = {aligned_alloc(64, (bytes + 63) / 64 * 64), bytes, NULL};
  openmsa_tensors append, attend;
  openmsa_tensors_init(&append);
  append.cu_seqlens_q = INT32(cu_seqlens_q, 1, kBatch + 1), append.seqlens_k = INT32(seqlens_k, 1, kBatch);
  append.block_table = INT32(block_table, 2, kBatch, kMaxPages);
  append.k_cache = FP32(k_cache, 4, kPages, kPageSize, kHeadsKv, kDim);
  append.v_cache = FP32(v_cache, 4, kPages, kPageSize, kHeadsKv, kDim);
  append.index_k_cache = FP32(index_k_cache, 3, kPages, kPageSize, kDim);
  attend = append;
  append.k = FP32(k, 3, kRows, kHeadsKv, kDim), append.v = FP32(v, 3, kRows, kHeadsKv, kDim);
  attend.q = FP32(q, 3, kRows, kHeadsQ, kDim), attend.o = FP32(o, 3, kRows, kHeadsQ, kDim);
  append.index_k = FP32(index_k, 2, kRows, kDim), attend.index_q = FP32(index_q, 3, kRows, kHeadsKv, kDim);
  while (num_spare < kPages) spare[num_spare] = num_spare, ++num_spare;
  for (Request* r = requests; r < requests + kBatch; ++r)
    while (r->known < r->prompt) r->tokens[r->known] = 7 * r->known + r->prompt, ++r->known;
  while (schedule(chunk) > 0) {
    check(openmsa_append_kv(plan, &append, workspace));
    check(openmsa_msa_attention(plan, &attend, workspace));
    advance();
  }
  for (const Request* r = requests; r < requests + kBatch; ++r) {
    printf("%d tokens, then", r->prompt);
    for (int t = r->prompt; t < r->known; ++t) printf(t + 1 < r->known ? " %d" : " %d\n", r->tokens[t]);
  }
  openmsa_plan_destroy(plan), free(workspace.data);
  return num_spare == kPages ? 0 : 1; /* every page came back */
}
