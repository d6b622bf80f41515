// A server's day: thousands of steps of one captured graph, which appends the new tokens and attends, while requests
// come and go in the memory that it was captured with. OPENMSA_SOAK_STEPS sets another number of steps.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "api/operations.h"
#include "cuda/decode/cases.h"
#include "cuda/decode/serving_trace.h"
#include "cuda/support/judge.h"

namespace openmsa::test {
namespace {

constexpr ServingLimits kLimits{.slots = 16, .num_pages = 500, .page_size = 16, .max_pages = 64, .max_new = 4};
constexpr std::int64_t kJudgedSteps = 50;  // one in so many is compared with the CPU
constexpr const char* kCaches[] = {"k_cache", "v_cache", "index_k_cache"};

Layer captured_layer() {
  const auto slots = static_cast<std::size_t>(kLimits.slots);
  Layer layer = with_new_keys(make_layer({.dtype = OPENMSA_BFLOAT16,
                                          .num_heads_q = 8,
                                          .block_size = 64,
                                          .page_size = kLimits.page_size,
                                          .seqlens_q = std::vector<std::int64_t>(slots, kLimits.max_new),
                                          .seqlens_k = std::vector<std::int64_t>(slots, kLimits.max_new)}),
                              1);
  layer.config.max_seqlen_k = kLimits.max_pages * kLimits.page_size;
  layer.tensors["block_table"] = Buffer(OPENMSA_INT32, {kLimits.slots, kLimits.max_pages});
  for (const char* name : kCaches) {
    Shape shape = layer.tensors.at(name).shape();
    shape[0] = kLimits.num_pages;
    layer.tensors[name] = Buffer(OPENMSA_BFLOAT16, shape);
  }
  return layer;
}

TensorMap caches_of(const Layer& layer) {
  TensorMap result;
  for (const char* name : kCaches) result[name] = layer.tensors.at(name);
  return result;
}

/// The same memory on the host and on the device, which the graph works on.
class Server {
 public:
  Server()
      : layer_(captured_layer()),
        caches_(caches_of(layer_)),
        append_(layer_, OPENMSA_OP_APPEND_KV, caches_),
        attend_(share(append_, DeviceCall(layer_, OPENMSA_OP_MSA_ATTENTION))),
        graph_([this](cudaStream_t stream) {
          append_.enqueue(stream);
          attend_.enqueue(stream);
        }) {}

  /// Changes memory as `step` says, and runs it on the device and, but for attention, on the host.
  void run(const ServingStep& step) {
    for (const std::int64_t page : step.returned) poison(page);
    for (const ServingStep::Fill& fill : step.filled) put_prompt(fill);
    layer_ = with_lengths(std::move(layer_), step.seqlens_q, step.seqlens_k);
    layer_.tensors["block_table"] = int_buffer(step.block_table, {kLimits.slots, kLimits.max_pages});
    for (const char* name : {"cu_seqlens_q", "seqlens_k", "block_table"}) {
      const std::vector<std::byte>& bytes = layer_.tensors.at(name).bytes();
      upload(name, bytes.data(), bytes.size());
    }
    for (const char* name : {"q", "index_q", "k", "v", "index_k"}) {
      Buffer& buffer = layer_.tensors.at(name);
      const std::byte* values = noise(buffer.bytes().size());
      std::memcpy(buffer.view().data, values, buffer.bytes().size());
      upload(name, values, buffer.bytes().size());
    }
    const openmsa_tensor& o = attend_.tensors().o;
    require_cuda(cudaMemsetAsync(o.data, 0xff, o_.size() * sizeof(o_[0]), stream_.get()), "cudaMemsetAsync");
    graph_.replay(stream_);
    run_into(layer_, OPENMSA_OP_APPEND_KV, caches_);
    require_cuda(cudaMemcpyAsync(o_.data(), o.data, o_.size() * sizeof(o_[0]), cudaMemcpyDefault, stream_.get()),
                 "cudaMemcpyAsync");
    stream_.wait();
  }

  /// Every row was written, and what was poisoned has not got into any of them.
  void expect_finite_results() const {
    constexpr std::uint16_t kExponent = 0x7f80;  // bf16
    EXPECT_TRUE(std::none_of(o_.begin(), o_.end(), [](std::uint16_t value) {
      return (value & kExponent) == kExponent;
    })) << "o has a NaN or Inf";
  }

  void expect_results_of_the_cpu() const {
    expect_same_bits(append_.results(), caches_);
    Layer layer = layer_;
    layer.add(caches_);
    const TensorMap got = attend_.results();
    expect_selection(layer, got.at("topk_indices"), OPENMSA_BACKEND_CPU);
    layer.add({{"topk_indices", got.at("topk_indices")}});
    expect_close(layer, got, judged(layer, OPENMSA_OP_SPARSE_ATTENTION, OPENMSA_BACKEND_CPU));
  }

 private:
  /// `attend` on the caches and the batch of `append`.
  static DeviceCall share(DeviceCall& append, DeviceCall attend) {
    const Tensors& from = append.tensors();
    Tensors& to = attend.tensors();
    to.k_cache = from.k_cache;
    to.v_cache = from.v_cache;
    to.index_k_cache = from.index_k_cache;
    to.cu_seqlens_q = from.cu_seqlens_q;
    to.seqlens_k = from.seqlens_k;
    to.block_table = from.block_table;
    return attend;
  }

  /// Normal numbers, other ones each time.
  const std::byte* noise(std::size_t bytes) {
    const std::size_t last = noise_.bytes().size() - bytes;
    return noise_.bytes().data() + random_() % (last / 16) * 16;
  }

  /// Device memory of a tensor that one of the calls reads or writes.
  std::byte* on_device(const std::string& name) {
    for (const api::Field& field : api::fields()) {
      if (name != field.name) continue;
      const openmsa_tensor& appended = append_.tensors().*field.member;
      return static_cast<std::byte*>((appended.rank > 0 ? appended : attend_.tensors().*field.member).data);
    }
    throw std::logic_error("no tensor " + name);
  }

  void upload(const std::string& name, const std::byte* from, std::size_t bytes, std::size_t offset = 0) {
    require_cuda(cudaMemcpyAsync(on_device(name) + offset, from, bytes, cudaMemcpyDefault, stream_.get()),
                 "cudaMemcpyAsync");
  }

  void poison(std::int64_t page) {
    for (auto& [name, cache] : caches_) {
      const std::size_t bytes = cache.bytes().size() / kLimits.num_pages,
                        offset = static_cast<std::size_t>(page) * bytes;
      std::memset(static_cast<std::byte*>(cache.view().data) + offset, 0xff, bytes);
      require_cuda(cudaMemsetAsync(on_device(name) + offset, 0xff, bytes, stream_.get()), "cudaMemsetAsync");
    }
  }

  void put_prompt(const ServingStep::Fill& fill) {
    for (auto& [name, cache] : caches_) {
      const std::size_t page_bytes = cache.bytes().size() / kLimits.num_pages;
      const std::size_t offset = static_cast<std::size_t>(fill.page) * page_bytes;
      const std::size_t bytes = page_bytes / kLimits.page_size * static_cast<std::size_t>(fill.tokens);
      const std::byte* values = noise(bytes);
      std::memcpy(static_cast<std::byte*>(cache.view().data) + offset, values, bytes);
      upload(name, values, bytes, offset);
    }
  }

  std::mt19937_64 random_{1};
  const Buffer noise_ = random_buffer(OPENMSA_BFLOAT16, {1 << 18}, random_);
  Layer layer_;       // of the latest step
  TensorMap caches_;  // as they should be on the device
  DeviceCall append_, attend_;
  Stream stream_;
  Graph graph_;
  std::vector<std::uint16_t> o_ = std::vector<std::uint16_t>(static_cast<std::size_t>(layer_.tensors.at("q").size()));
};

class ServingSoak : public OnHopper {};

TEST_F(ServingSoak, EveryStepOfOneGraphIsRight) {
  const char* wanted = std::getenv("OPENMSA_SOAK_STEPS");
  const std::int64_t steps = wanted != nullptr ? std::stoll(wanted) : 10000;
  ServingTrace trace(kLimits, 1);
  Server server;
  for (std::int64_t step = 1; step <= steps; ++step) {
    SCOPED_TRACE(testing::Message() << "step " << step);
    ASSERT_NO_THROW(server.run(trace.next()));
    server.expect_finite_results();
    if (step % kJudgedSteps == 0) server.expect_results_of_the_cpu();
    if (HasFailure()) return;
  }
  // The trace had what it is for.
  EXPECT_GE(trace.joined(), steps / 20);
  EXPECT_GE(trace.joined_behind_a_prefix(), steps / 100);
  EXPECT_GE(trace.stalled(), steps / 1000);
}

}  // namespace
}  // namespace openmsa::test
