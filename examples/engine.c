/* A serving engine around one layer, C API: requests share a paged cache, and each step is one batch of chunks of
 * prompts and of single new tokens. The rest of the model is left out: a token's projections are noise that it seeds,
 * and the next token is where the layer's output is largest. Usage: engine [MOST TOKENS OF A REQUEST PER STEP] */
#include <openmsa/openmsa.h>
#include <stdio.h>
#include <stdlib.h>

enum { kHeadsQ = 4, kHeadsKv = 2, kDim = 64, kPageSize = 32, kPages = 24, kMaxPages = 12, kSlots = 3, kMaxChunk = 128 };
enum { kMaxRows = kSlots * kMaxChunk, kRequests = 6, kNewTokens = 20 };
typedef struct {
  int32_t tokens[kMaxPages * kPageSize]; /* prompt, then new ones */
  int prompt, known, cached;             /* how many: in the prompt, in `tokens`, in the cache */
} Request;

static Request requests[kRequests] = {{.prompt = 300}, {.prompt = 20}, {.prompt = 150},
                                      {.prompt = 7},   {.prompt = 90}, {.prompt = 350}};
static Request *waiting = requests, *slots[kSlots];
static int32_t free_pages[kPages];
static int num_waiting = kRequests, num_free = 0;

/* One step. Shapes never change, whoever comes and goes: rows behind the last token are padding. */
static float q[kMaxRows][kHeadsQ * kDim], k[kMaxRows][kHeadsKv * kDim], v[kMaxRows][kHeadsKv * kDim];
static float index_q[kMaxRows][kHeadsKv * kDim], index_k[kMaxRows][kDim], o[kMaxRows][kHeadsQ * kDim];
static float k_cache[kPages * kPageSize * kHeadsKv * kDim], v_cache[kPages * kPageSize * kHeadsKv * kDim];
static float index_k_cache[kPages * kPageSize * kDim];
static int32_t cu_seqlens_q[kSlots + 1], seqlens_k[kSlots], block_table[kSlots][kMaxPages];

static void check(openmsa_status status) {
  if (status == OPENMSA_SUCCESS) return;
  fprintf(stderr, "%s: %s\n", openmsa_status_string(status), openmsa_last_error());
  exit(1);
}

static openmsa_tensor fp32(void* data, int rank, const int64_t* shape) {
  return openmsa_contiguous(data, OPENMSA_FLOAT32, rank, shape);
}

static void fill_tensors(openmsa_tensors* append, openmsa_tensors* attend) {
  openmsa_tensors_init(append);
  append->cu_seqlens_q = openmsa_contiguous(cu_seqlens_q, OPENMSA_INT32, 1, (int64_t[]){kSlots + 1});
  append->seqlens_k = openmsa_contiguous(seqlens_k, OPENMSA_INT32, 1, (int64_t[]){kSlots});
  append->block_table = openmsa_contiguous(block_table, OPENMSA_INT32, 2, (int64_t[]){kSlots, kMaxPages});
  append->k_cache = fp32(k_cache, 4, (int64_t[]){kPages, kPageSize, kHeadsKv, kDim});
  append->v_cache = fp32(v_cache, 4, (int64_t[]){kPages, kPageSize, kHeadsKv, kDim});
  append->index_k_cache = fp32(index_k_cache, 3, (int64_t[]){kPages, kPageSize, kDim});
  *attend = *append;
  append->k = fp32(k, 3, (int64_t[]){kMaxRows, kHeadsKv, kDim});
  append->v = fp32(v, 3, (int64_t[]){kMaxRows, kHeadsKv, kDim});
  append->index_k = fp32(index_k, 2, (int64_t[]){kMaxRows, kDim});
  attend->q = fp32(q, 3, (int64_t[]){kMaxRows, kHeadsQ, kDim});
  attend->index_q = fp32(index_q, 3, (int64_t[]){kMaxRows, kHeadsKv, kDim});
  attend->o = fp32(o, 3, (int64_t[]){kMaxRows, kHeadsQ, kDim});
}

static void noise(float* row, int count, uint32_t seed) {
  for (int i = 0; i < count; ++i) row[i] = (float)(int32_t)(seed = seed * 1664525u + 1013904223u) * 0x1p-30f;
}

static void project(int32_t token, int position, int row) {
  const uint32_t seed = (uint32_t)token * 2654435761u + (uint32_t)position * 40503u;
  noise(q[row], kHeadsQ * kDim, seed + 1);
  noise(k[row], kHeadsKv * kDim, seed + 2);
  noise(v[row], kHeadsKv * kDim, seed + 3);
  noise(index_q[row], kHeadsKv * kDim, seed + 4);
  noise(index_k[row], kDim, seed + 5);
}

static int32_t next_token(const float* row) {
  int32_t best = 0;
  for (int32_t i = 1; i < kHeadsQ * kDim; ++i) best = row[i] > row[best] ? i : best;
  return best;
}

/* The pages of all its tokens: a request that has joined never waits for one. */
static int pages_of(const Request* r) { return (r->prompt + kNewTokens + kPageSize - 1) / kPageSize; }

/* Puts what comes next of each request, at most `chunk` tokens, into the step; returns how many tokens that is. */
static int schedule(int chunk) {
  int row = 0;
  for (int s = 0; s < kSlots; ++s) {
    if (slots[s] == NULL && num_waiting > 0 && pages_of(waiting) <= num_free) {
      for (int page = 0; page < pages_of(waiting); ++page) block_table[s][page] = free_pages[--num_free];
      slots[s] = waiting++;
      --num_waiting;
    }
    const Request* r = slots[s];
    const int left = r ? r->known - r->cached : 0, count = left < chunk ? left : chunk;
    for (int t = 0; t < count; ++t) project(r->tokens[r->cached + t], r->cached + t, row++);
    seqlens_k[s] = r ? r->cached + count : 0;
    cu_seqlens_q[s + 1] = row;
  }
  return row;
}

/* A request whose last known token was in the step gets a new one; a complete one leaves. */
static void advance(void) {
  for (int s = 0; s < kSlots; ++s) {
    Request* r = slots[s];
    if (r == NULL) continue;
    r->cached = seqlens_k[s];
    if (r->cached == r->known) r->tokens[r->known++] = next_token(o[cu_seqlens_q[s + 1] - 1]);
    if (r->known < r->prompt + kNewTokens) continue;
    for (int page = 0; page < pages_of(r); ++page) free_pages[num_free++] = block_table[s][page];
    slots[s] = NULL;
  }
}

int main(int argc, char** argv) {
  const int chunk = argc > 1 ? atoi(argv[1]) : kMaxChunk;
  if (chunk < 1 || chunk > kMaxChunk) return fprintf(stderr, "engine: expected a chunk of 1 to %d\n", kMaxChunk), 2;
  openmsa_config config;
  openmsa_config_init(&config);
  config.num_heads_q = kHeadsQ, config.num_heads_kv = kHeadsKv, config.head_dim = config.index_dim = kDim;
  config.block_size = config.page_size = kPageSize, config.topk = 4;
  config.max_batch = kSlots, config.max_total_q = kMaxRows, config.max_seqlen_k = kMaxPages * kPageSize;
  openmsa_plan* plan;
  check(openmsa_plan_create(&config, &plan));
  size_t bytes; /* openmsa_append_kv needs none on the CPU */
  check(openmsa_plan_workspace_bytes(plan, OPENMSA_OP_MSA_ATTENTION, &bytes));
  const openmsa_workspace workspace = {aligned_alloc(64, (bytes + 63) / 64 * 64), bytes, NULL};
  openmsa_tensors append, attend;
  fill_tensors(&append, &attend);

  for (Request* r = requests; r < requests + kRequests; ++r) {
    while (r->known < r->prompt) r->tokens[r->known] = 7 * r->known + r->prompt, ++r->known;
  }
  while (num_free < kPages) free_pages[num_free] = num_free, ++num_free;
  while (schedule(chunk) > 0) {
    check(openmsa_append_kv(plan, &append, workspace));
    check(openmsa_msa_attention(plan, &attend, workspace));
    advance();
  }
  for (const Request* r = requests; r < requests + kRequests; ++r) {
    printf("%d tokens, then", r->prompt);
    for (int t = r->prompt; t < r->known; ++t) printf(" %d", r->tokens[t]);
    printf("\n");
  }
  free(workspace.data);
  openmsa_plan_destroy(plan);
  return num_free == kPages ? 0 : 1; /* every page came back */
}
