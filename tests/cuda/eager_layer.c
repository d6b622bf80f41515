/* Host time of a decode layer that is launched eagerly, from C: what openmsa_msa_attention takes until it returns, in a
 * plan of a serving engine (8192 query tokens, 1M keys, 512 sequences) of MiniMax-M3's shape with paged e4m3 caches. Not
 * a test: python -m openmsa.bench and msa bench measure steps in a CUDA graph, where no host takes part.
 *
 *   eager_layer [sequences [keys of each]]     1 and 32768 */
#include <cuda_runtime_api.h>
#include <openmsa/openmsa.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { kHeadsQ = 64, kHeadsKv = 4, kDim = 128, kPageSize = 128, kWarmup = 200, kCalls = 2000, kAtOnce = 20 };

static void check(openmsa_status status) {
  if (status == OPENMSA_SUCCESS) return;
  fprintf(stderr, "%s: %s\n", openmsa_status_string(status), openmsa_last_error());
  exit(1);
}

static void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  exit(1);
}

/* Device memory of zeros. */
static openmsa_tensor tensor(openmsa_dtype dtype, int rank, const int64_t* shape) {
  size_t bytes = openmsa_dtype_bytes(dtype);
  for (int i = 0; i < rank; ++i) bytes *= (size_t)shape[i];
  void* data;
  check_cuda(cudaMalloc(&data, bytes));
  check_cuda(cudaMemset(data, 0, bytes));
  return openmsa_contiguous(data, dtype, rank, shape);
}

/* first + i * step. */
static void fill(openmsa_tensor to, int64_t count, int64_t first, int64_t step) {
  int32_t* const values = malloc((size_t)count * sizeof(int32_t));
  for (int64_t i = 0; i < count; ++i) values[i] = (int32_t)(first + i * step);
  check_cuda(cudaMemcpy(to.data, values, (size_t)count * sizeof(int32_t), cudaMemcpyDefault));
  free(values);
}

static double now(void) {
  struct timespec time;
  timespec_get(&time, TIME_UTC);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec * 1e-3;
}

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

int main(int argc, char** argv) {
  const int64_t batch = argc > 1 ? atoll(argv[1]) : 1, keys = argc > 2 ? atoll(argv[2]) : 32768;
  const int64_t pages = (keys + kPageSize - 1) / kPageSize;
  openmsa_config config;
  openmsa_config_init(&config);
  config.backend = OPENMSA_BACKEND_CUDA;
  config.dtype = OPENMSA_BFLOAT16;
  config.kv_dtype = config.index_dtype = OPENMSA_FLOAT8_E4M3;
  config.num_heads_q = kHeadsQ;
  config.num_heads_kv = kHeadsKv;
  config.head_dim = config.index_dim = kDim;
  config.page_size = kPageSize;
  config.max_total_q = 8192;
  config.max_seqlen_k = 1 << 20;
  config.max_batch = 512;
  openmsa_plan* plan;
  check(openmsa_plan_create(&config, &plan));

  openmsa_tensors t;
  openmsa_tensors_init(&t);
  t.cu_seqlens_q = tensor(OPENMSA_INT32, 1, (int64_t[]){batch + 1});
  t.seqlens_k = tensor(OPENMSA_INT32, 1, (int64_t[]){batch});
  t.block_table = tensor(OPENMSA_INT32, 2, (int64_t[]){batch, pages});
  fill(t.cu_seqlens_q, batch + 1, 0, 1);
  fill(t.seqlens_k, batch, keys, 0);
  fill(t.block_table, batch * pages, 0, 1);
  t.k_cache = tensor(config.kv_dtype, 4, (int64_t[]){batch * pages, kPageSize, kHeadsKv, kDim});
  t.v_cache = tensor(config.kv_dtype, 4, (int64_t[]){batch * pages, kPageSize, kHeadsKv, kDim});
  t.index_k_cache = tensor(config.index_dtype, 3, (int64_t[]){batch * pages, kPageSize, kDim});
  t.q = tensor(config.dtype, 3, (int64_t[]){batch, kHeadsQ, kDim});
  t.index_q = tensor(config.dtype, 3, (int64_t[]){batch, kHeadsKv, kDim});
  t.o = tensor(config.dtype, 3, (int64_t[]){batch, kHeadsQ, kDim});

  openmsa_workspace workspace = {NULL, 0, NULL};
  cudaStream_t stream;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  check(openmsa_plan_workspace_bytes(plan, OPENMSA_OP_MSA_ATTENTION, &workspace.bytes));
  check_cuda(cudaMalloc(&workspace.data, workspace.bytes));
  check_cuda(cudaDeviceSynchronize());
  workspace.stream = stream;

  static double times[kCalls];
  const double before_first = now();
  check(openmsa_msa_attention(plan, &t, workspace));
  const double first = now() - before_first;
  for (int i = -kWarmup; i < kCalls; ++i) {
    if (i % kAtOnce == 0) check_cuda(cudaStreamSynchronize(stream)); /* the queue stays short */
    const double begin = now();
    check(openmsa_msa_attention(plan, &t, workspace));
    if (i >= 0) times[i] = now() - begin;
  }
  check_cuda(cudaStreamSynchronize(stream));
  qsort(times, kCalls, sizeof(times[0]), compare);
  printf(
      "%lld x %lld: %.2f us of host time for an eager layer (%.2f to %.2f for nine tenths), the first call %.0f us\n",
      (long long)keys, (long long)batch, times[kCalls / 2], times[kCalls / 20], times[kCalls - kCalls / 20], first);
  openmsa_plan_destroy(plan);
  return 0;
}
