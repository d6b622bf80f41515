// A prompt on all GPUs of this machine, without Python: a thread per GPU has the queries and keys of two pieces, the keys are
// gathered through NCCL, and the results are those of one GPU but for rounding. With fewer than two GPUs it says so and does nothing.
#include <cuda_runtime.h>
#include <nccl.h>
#include <openmsa/openmsa_nccl.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <exception>
#include <iostream>
#include <openmsa/openmsa.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr std::int64_t kTokens = 5000, kHeadsQ = 16, kHeadsKv = 2, kDim = 128, kPage = 128;
using Bf16 = std::uint16_t;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
void check(ncclResult_t result) {
  if (result != ncclSuccess) throw std::runtime_error(ncclGetErrorString(result));
}
void check_nccl(openmsa_status status) {
  if (status != OPENMSA_SUCCESS) throw std::runtime_error(openmsa_nccl_last_error());
}

std::vector<Bf16> random_rows(std::int64_t channels, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<Bf16> values(kTokens * channels);
  for (Bf16& value : values) value = static_cast<Bf16>(std::bit_cast<std::uint32_t>(normal(generator)) >> 16);
  return values;
}

/// The whole prompt, on the host.
struct Prompt {
  std::vector<Bf16> q = random_rows(kHeadsQ * kDim, 1), k = random_rows(kHeadsKv * kDim, 2);
  std::vector<Bf16> v = random_rows(kHeadsKv * kDim, 3), index_q = random_rows(kHeadsKv * kDim, 4);
  std::vector<Bf16> index_k = random_rows(kDim, 5);
};

/// Device memory.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) { check(cudaMalloc(&data_, std::max<std::size_t>(bytes, 1))); }
  template <class T>
  explicit Memory(const std::vector<T>& values) : Memory(values.size() * sizeof(T)) {
    check(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice));
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }
  openmsa_workspace workspace(cudaStream_t stream) const { return {data_, bytes_, stream}; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

openmsa::Config layer() {
  openmsa::Config config = openmsa::config();
  config.backend = OPENMSA_BACKEND_CUDA;
  config.dtype = OPENMSA_BFLOAT16;
  config.num_heads_q = kHeadsQ;
  config.num_heads_kv = kHeadsKv;
  config.head_dim = config.index_dim = kDim;
  config.topk = 8;
  config.page_size = kPage;
  config.max_batch = 2;
  config.max_total_q = config.max_seqlen_k = kTokens;
  return config;
}

/// Rows of the rank's two pieces. With `padding` each is as long as a whole piece.
std::vector<Bf16> pieces_of(const std::vector<Bf16>& rows, const openmsa_nccl_prompt& prompt, bool padding) {
  const std::int64_t channels = static_cast<std::int64_t>(rows.size()) / kTokens;
  std::vector<Bf16> result;
  for (int piece = 0; piece < 2; ++piece) {
    result.insert(result.end(), rows.begin() + prompt.begin[piece] * channels,
                  rows.begin() + prompt.end[piece] * channels);
    if (padding) result.resize((piece + 1) * prompt.piece_tokens * channels);
  }
  return result;
}

/// o of the rank's tokens, in their places in `o` [kTokens, kHeadsQ, kDim].
void attend(const Prompt& whole, ncclComm_t comm, std::vector<Bf16>& o) {
  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  int count = 0;
  check(ncclCommCount(comm, &count));
  const openmsa::Config config = layer();
  openmsa_nccl_layer* ranks = nullptr;
  {
    const Memory memory(openmsa_nccl_create_bytes(count));
    check_nccl(openmsa_nccl_create(&config, OPENMSA_NCCL_QUERIES, comm, memory.workspace(stream), &ranks));
  }
  openmsa_nccl_prompt prompt;
  check_nccl(openmsa_nccl_prompt_pieces(ranks, kTokens, &prompt));
  std::vector<std::int32_t> table(prompt.num_pages);
  check_nccl(openmsa_nccl_prompt_pages(ranks, kTokens, table.data()));
  table.insert(table.end(), table.begin(), table.begin() + prompt.num_pages);

  const Memory k(pieces_of(whole.k, prompt, true)), v(pieces_of(whole.v, prompt, true));
  const Memory index_k(pieces_of(whole.index_k, prompt, true));
  const std::size_t tokens = prompt.num_pages * kPage, bytes = tokens * kDim * sizeof(Bf16);
  const Memory k_cache(bytes * kHeadsKv), v_cache(bytes * kHeadsKv), index_k_cache(bytes);
  const std::int64_t mine = 2 * prompt.piece_tokens;
  openmsa::Tensors keys = openmsa::tensors();
  keys.k = openmsa::view(k.data(), config.dtype, {mine, kHeadsKv, kDim});
  keys.v = openmsa::view(v.data(), config.dtype, {mine, kHeadsKv, kDim});
  keys.index_k = openmsa::view(index_k.data(), config.dtype, {mine, kDim});
  keys.k_cache = openmsa::view(k_cache.data(), config.dtype, {prompt.num_pages, kPage, kHeadsKv, kDim});
  keys.v_cache = openmsa::view(v_cache.data(), config.dtype, {prompt.num_pages, kPage, kHeadsKv, kDim});
  keys.index_k_cache = openmsa::view(index_k_cache.data(), config.dtype, {prompt.num_pages, kPage, kDim});
  check_nccl(openmsa_nccl_gather_keys(ranks, &keys, stream));

  const auto first = static_cast<std::int32_t>(prompt.end[0] - prompt.begin[0]);
  const auto rows = static_cast<std::int32_t>(first + prompt.end[1] - prompt.begin[1]);
  const Memory bounds(std::vector<std::int32_t>{0, first, rows}), block_table(table);
  const Memory lengths(std::vector<std::int32_t>(prompt.end, prompt.end + 2));
  const Memory q(pieces_of(whole.q, prompt, false)), index_q(pieces_of(whole.index_q, prompt, false));
  const Memory results(rows * kHeadsQ * kDim * sizeof(Bf16));
  openmsa::Tensors call = openmsa::tensors();
  call.cu_seqlens_q = openmsa::view(bounds.data(), OPENMSA_INT32, {3});
  call.seqlens_k = openmsa::view(lengths.data(), OPENMSA_INT32, {2});
  call.block_table = openmsa::view(block_table.data(), OPENMSA_INT32, {2, prompt.num_pages});
  call.q = openmsa::view(q.data(), config.dtype, {rows, kHeadsQ, kDim});
  call.index_q = openmsa::view(index_q.data(), config.dtype, {rows, kHeadsKv, kDim});
  call.k_cache = keys.k_cache;
  call.v_cache = keys.v_cache;
  call.index_k_cache = keys.index_k_cache;
  call.o = openmsa::view(results.data(), config.dtype, {rows, kHeadsQ, kDim});
  const openmsa::Plan plan(config);
  const Memory workspace(plan.workspace_bytes(OPENMSA_OP_MSA_ATTENTION));
  plan.run(OPENMSA_OP_MSA_ATTENTION, call, workspace.workspace(stream));
  check(cudaStreamSynchronize(stream));

  const auto* from = static_cast<const Bf16*>(results.data());
  for (int piece = 0; piece < 2; ++piece) {
    const std::size_t begin = prompt.begin[piece] * kHeadsQ * kDim;
    const std::size_t size = (prompt.end[piece] - prompt.begin[piece]) * kHeadsQ * kDim;
    check(cudaMemcpy(o.data() + begin, from, size * sizeof(Bf16), cudaMemcpyDeviceToHost));
    from += size;
  }
  openmsa_nccl_destroy(ranks);
  check(cudaStreamDestroy(stream));
}

/// o of the prompt on so many GPUs.
std::vector<Bf16> attend_on(int count, const Prompt& prompt) {
  std::vector<ncclComm_t> comms(count);
  check(ncclCommInitAll(comms.data(), count, nullptr));
  std::vector<Bf16> o(prompt.q.size());
  std::vector<std::exception_ptr> errors(count);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < count; ++rank) {
    ranks.emplace_back([&, rank] {
      try {
        check(cudaSetDevice(rank));
        attend(prompt, comms[rank], o);
      } catch (...) {
        errors[rank] = std::current_exception();
      }
    });
  }
  for (std::thread& rank : ranks) rank.join();
  for (const ncclComm_t comm : comms) ncclCommDestroy(comm);
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
  return o;
}

/// The largest difference of two numbers.
float difference(const std::vector<Bf16>& o, const std::vector<Bf16>& expected) {
  const auto number = [](Bf16 bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); };
  float largest = 0;
  for (std::size_t i = 0; i < o.size(); ++i) {
    const float apart = std::abs(number(o[i]) - number(expected[i]));
    if (!(apart <= largest)) largest = apart;
  }
  return largest;
}

}  // namespace

int main() try {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count < 2) {
    std::cout << "skipped: fewer than two GPUs\n";
    return 0;
  }
  const Prompt prompt;
  const float apart = difference(attend_on(count, prompt), attend_on(1, prompt));
  std::cout << kTokens << " tokens on " << count << " GPUs: at most " << apart << " from the results of one\n";
  return apart <= 0.02F ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
