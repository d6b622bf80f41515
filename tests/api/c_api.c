/* The C API from a C program: one sequence of 20 keys in kv_blocks of 8, prefill of the last 2 queries. */
#include <math.h>
#include <openmsa/openmsa.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kQueries = 2, kKeys = 20, kDim = 8, kTopk = 2 };

static int failures = 0;

static void expect(int condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "failed: %s (last error: %s)\n", what, openmsa_last_error());
  ++failures;
}

static openmsa_plan* create_plan(void) {
  openmsa_config config;
  openmsa_config_init(&config);
  config.num_heads_q = 1;
  config.num_heads_kv = 1;
  config.head_dim = kDim;
  config.index_dim = kDim;
  config.block_size = 8;
  config.topk = kTopk;
  config.max_total_q = kQueries;
  config.max_seqlen_k = kKeys;
  openmsa_plan* plan = NULL;
  expect(openmsa_plan_create(&config, &plan) == OPENMSA_SUCCESS, "a valid plan is created");
  return plan;
}

int main(void) {
  /* Queries of zero weigh all chosen tokens alike; index keys make kv_block 1 (tokens 8 to 15) the best one. v = j. */
  float q[kQueries * kDim] = {0}, index_q[kQueries * kDim] = {0};
  float k[kKeys * kDim] = {0}, v[kKeys * kDim] = {0}, index_k[kKeys * kDim] = {0};
  float o[kQueries * kDim], lse[kQueries];
  int32_t topk_indices[kQueries * kTopk];
  for (int t = 0; t < kQueries; ++t) index_q[t * kDim] = 1;
  for (int j = 0; j < kKeys; ++j) v[j * kDim] = (float)j;
  index_k[9 * kDim] = 1;

  const int64_t query_shape[] = {kQueries, 1, kDim}, key_shape[] = {kKeys, 1, kDim};
  const int64_t index_k_shape[] = {kKeys, kDim}, lse_shape[] = {kQueries, 1}, topk_shape[] = {1, kQueries, kTopk};
  openmsa_tensors tensors;
  openmsa_tensors_init(&tensors);
  tensors.q = openmsa_contiguous(q, OPENMSA_FLOAT32, 3, query_shape);
  tensors.k = openmsa_contiguous(k, OPENMSA_FLOAT32, 3, key_shape);
  tensors.v = openmsa_contiguous(v, OPENMSA_FLOAT32, 3, key_shape);
  tensors.index_q = openmsa_contiguous(index_q, OPENMSA_FLOAT32, 3, query_shape);
  tensors.index_k = openmsa_contiguous(index_k, OPENMSA_FLOAT32, 2, index_k_shape);
  tensors.o = openmsa_contiguous(o, OPENMSA_FLOAT32, 3, query_shape);
  tensors.lse = openmsa_contiguous(lse, OPENMSA_FLOAT32, 2, lse_shape);
  tensors.topk_indices = openmsa_contiguous(topk_indices, OPENMSA_INT32, 3, topk_shape);

  openmsa_plan* plan = create_plan();
  openmsa_workspace workspace = {NULL, 0, NULL};
  expect(openmsa_plan_workspace_bytes(plan, OPENMSA_OP_MSA_ATTENTION, &workspace.bytes) == OPENMSA_SUCCESS,
         "the workspace has a size");
  workspace.bytes = (workspace.bytes + 63) / 64 * 64;
  if (workspace.bytes > 0) workspace.data = aligned_alloc(64, workspace.bytes);
  expect(openmsa_msa_attention(plan, &tensors, workspace) == OPENMSA_SUCCESS, "the layer runs");

  /* Position 19: tokens 8 to 15 and 16 to 19, on average 13.5; position 18: 8 to 18, on average 13. */
  expect(topk_indices[0] == 1 && topk_indices[1] == 2 && topk_indices[2] == 1 && topk_indices[3] == 2,
         "kv_blocks 1, 2");
  expect(fabsf(o[0] - 13.0f) < 1e-5f && fabsf(o[kDim] - 13.5f) < 1e-5f, "o");
  expect(fabsf(lse[0] - logf(11)) < 1e-6f && fabsf(lse[1] - logf(12)) < 1e-6f, "lse");

  tensors.q.shape[2] = kDim + 1;
  expect(openmsa_msa_attention(plan, &tensors, workspace) == OPENMSA_INVALID_ARGUMENT, "a wrong shape is refused");
  expect(strstr(openmsa_last_error(), "q: expected shape[2] = head_dim = 8, got 9") != NULL, "the message says why");
  expect(strcmp(openmsa_status_string(OPENMSA_INVALID_ARGUMENT), "invalid argument") == 0, "status text");
  expect(strcmp(openmsa_version(), "0.1.0") == 0, "version");

  openmsa_plan_destroy(plan);
  free(workspace.data);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
