/* Ten decode steps on a paged cache, C API: append a token's keys, then attend. */
#include <openmsa/openmsa.h>
#include <stdio.h>
#include <stdlib.h>

enum { kHeadsQ = 4, kHeadsKv = 2, kDim = 64, kPageSize = 32, kPages = 8, kSteps = 10 };

static float q[kHeadsQ * kDim], k[kHeadsKv * kDim], v[kHeadsKv * kDim], index_q[kHeadsKv * kDim], index_k[kDim];
static float k_cache[kPages * kPageSize * kHeadsKv * kDim], v_cache[kPages * kPageSize * kHeadsKv * kDim];
static float index_k_cache[kPages * kPageSize * kDim];
static float o[kHeadsQ * kDim];
static int32_t block_table[kPages] = {5, 2, 7, 0, 1, 6, 3, 4}; /* pages lie in any order */
static int32_t seqlens_k[1];

static void randomize(float* values, int count) {
  for (int i = 0; i < count; ++i) values[i] = (float)rand() / (float)RAND_MAX - 0.5f;
}

static openmsa_tensor fp32(float* data, int rank, const int64_t* shape) {
  return openmsa_contiguous(data, OPENMSA_FLOAT32, rank, shape);
}

static void check(openmsa_status status) {
  if (status == OPENMSA_SUCCESS) return;
  fprintf(stderr, "%s: %s\n", openmsa_status_string(status), openmsa_last_error());
  exit(1);
}

/* Shapes of both calls; each takes the tensors that it names and no others. */
static void fill_tensors(openmsa_tensors* append, openmsa_tensors* attend) {
  openmsa_tensors_init(append);
  append->seqlens_k = openmsa_contiguous(seqlens_k, OPENMSA_INT32, 1, (int64_t[]){1});
  append->block_table = openmsa_contiguous(block_table, OPENMSA_INT32, 2, (int64_t[]){1, kPages});
  append->k_cache = fp32(k_cache, 4, (int64_t[]){kPages, kPageSize, kHeadsKv, kDim});
  append->v_cache = fp32(v_cache, 4, (int64_t[]){kPages, kPageSize, kHeadsKv, kDim});
  append->index_k_cache = fp32(index_k_cache, 3, (int64_t[]){kPages, kPageSize, kDim});
  *attend = *append;
  append->k = fp32(k, 3, (int64_t[]){1, kHeadsKv, kDim});
  append->v = fp32(v, 3, (int64_t[]){1, kHeadsKv, kDim});
  append->index_k = fp32(index_k, 2, (int64_t[]){1, kDim});
  attend->q = fp32(q, 3, (int64_t[]){1, kHeadsQ, kDim});
  attend->index_q = fp32(index_q, 3, (int64_t[]){1, kHeadsKv, kDim});
  attend->o = fp32(o, 3, (int64_t[]){1, kHeadsQ, kDim});
}

int main(void) {
  openmsa_config config;
  openmsa_config_init(&config);
  config.num_heads_q = kHeadsQ;
  config.num_heads_kv = kHeadsKv;
  config.head_dim = kDim;
  config.index_dim = kDim;
  config.block_size = 32;
  config.topk = 2;
  config.page_size = kPageSize;
  config.max_total_q = 1;
  config.max_seqlen_k = kPages * kPageSize;
  openmsa_plan* plan;
  check(openmsa_plan_create(&config, &plan));

  openmsa_tensors append, attend;
  fill_tensors(&append, &attend);

  /* One workspace serves both operations. Its size does not change while the sequence grows. */
  size_t append_bytes, attend_bytes;
  check(openmsa_plan_workspace_bytes(plan, OPENMSA_OP_APPEND_KV, &append_bytes));
  check(openmsa_plan_workspace_bytes(plan, OPENMSA_OP_MSA_ATTENTION, &attend_bytes));
  const size_t bytes = ((append_bytes > attend_bytes ? append_bytes : attend_bytes) / 64 + 1) * 64;
  openmsa_workspace workspace = {aligned_alloc(64, bytes), bytes, NULL};

  for (int step = 0; step < kSteps; ++step) {
    randomize(q, kHeadsQ * kDim);
    randomize(k, kHeadsKv * kDim);
    randomize(v, kHeadsKv * kDim);
    randomize(index_q, kHeadsKv * kDim);
    randomize(index_k, kDim);
    seqlens_k[0] = step + 1;
    check(openmsa_append_kv(plan, &append, workspace));
    check(openmsa_msa_attention(plan, &attend, workspace));
    printf("token %d: o[0] = %f\n", step, (double)o[0]);
  }
  free(workspace.data);
  openmsa_plan_destroy(plan);
  return 0;
}
