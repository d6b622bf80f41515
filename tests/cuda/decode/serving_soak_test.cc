// A server's day: thousands of steps of one captured graph, which appends the new tokens and attends, while requests
// come and go in the memory that it was captured with. OPENMSA_SOAK_STEPS sets another number of steps.
#include <algorithm>
#include <cstdlib>
#include <span>
#include <string>
#include <utility>

#include "cuda/decode/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"
#include "support/serving_memory.h"

namespace openmsa::test {
namespace {

constexpr ServingLimits kDecodes{
    .slots = 16, .num_pages = 500, .page_size = 16, .max_pages = 64, .max_new = 4, .max_prompt = 400};
/// Every third step or so has a chunk of a prompt among its decodes: kernels of prefill serve it beside those of decode.
constexpr ServingLimits kMixtures{
    .slots = 16, .num_pages = 500, .page_size = 16, .max_pages = 64, .max_new = 4, .max_prompt = 400, .max_chunk = 300};
constexpr std::int64_t kJudgedSteps = 50;  // one in so many is compared with the CPU

/// The same memory on the host and on the device, which the graph works on.
class Server {
 public:
  Server(const ServingLimits& limits, LayerShape shape)
      : num_pages_(static_cast<std::size_t>(limits.num_pages)),
        memory_(std::move(shape), limits, 1),
        append_(memory_.layer(), OPENMSA_OP_APPEND_KV, memory_.caches()),
        attend_(share(append_, DeviceCall(memory_.layer(), OPENMSA_OP_MSA_ATTENTION))),
        graph_([this](cudaStream_t stream) {
          append_.enqueue(stream);
          attend_.enqueue(stream);
        }) {}

  /// Changes memory as `step` says, and runs it on the device and, but for attention, on the host.
  void run(const ServingStep& step) {
    memory_.apply(step);
    for (const std::int64_t page : step.returned) upload_page(page);
    for (const ServingStep::Fill& fill : step.filled) upload_page(fill.page);
    for (const char* name : {"cu_seqlens_q", "seqlens_k", "block_table", "q", "index_q", "k", "v", "index_k"}) {
      upload(name, memory_.layer().tensors.at(name).bytes());
    }
    const openmsa_tensor& o = attend_.tensors().o;
    require_cuda(cudaMemsetAsync(o.data, 0xff, o_.size() * sizeof(o_[0]), stream_.get()), "cudaMemsetAsync");
    graph_.replay(stream_);
    run_into(memory_.layer(), OPENMSA_OP_APPEND_KV, memory_.caches());
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
    expect_same_bits(append_.results(), memory_.caches());
    Layer layer = memory_.layer();
    layer.add(memory_.caches());
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

  /// Device memory of a tensor that one of the calls reads or writes.
  std::byte* on_device(const std::string& name) {
    const openmsa_tensor& appended = at(append_.tensors(), name.c_str());
    return static_cast<std::byte*>((appended.rank > 0 ? appended : at(attend_.tensors(), name.c_str())).data);
  }

  void upload(const std::string& name, std::span<const std::byte> bytes, std::size_t offset = 0) {
    require_cuda(
        cudaMemcpyAsync(on_device(name) + offset, bytes.data(), bytes.size(), cudaMemcpyDefault, stream_.get()),
        "cudaMemcpyAsync");
  }

  void upload_page(std::int64_t page) {
    for (const auto& [name, cache] : memory_.caches()) {
      const std::size_t bytes = cache.bytes().size() / num_pages_, offset = static_cast<std::size_t>(page) * bytes;
      upload(name, std::span(cache.bytes()).subspan(offset, bytes), offset);
    }
  }

  std::size_t num_pages_;
  ServingMemory memory_;
  DeviceCall append_, attend_;
  Stream stream_;
  Graph graph_;
  std::vector<std::uint16_t> o_ =
      std::vector<std::uint16_t>(static_cast<std::size_t>(memory_.layer().tensors.at("q").size()));
};

class ServingSoak : public OnHopper {
 protected:
  static std::int64_t steps() {
    const char* wanted = std::getenv("OPENMSA_SOAK_STEPS");
    return wanted != nullptr ? std::stoll(wanted) : 10000;
  }

  /// The trace that was played.
  static ServingTrace play(const ServingLimits& limits) {
    ServingTrace trace(limits, 1);
    Server server(limits, {.dtype = OPENMSA_BFLOAT16, .num_heads_q = 8, .block_size = 64});
    for (std::int64_t step = 1; step <= steps() && !HasFailure(); ++step) {
      SCOPED_TRACE(testing::Message() << "step " << step);
      EXPECT_NO_THROW(server.run(trace.next()));
      server.expect_finite_results();
      if (step % kJudgedSteps == 0) server.expect_results_of_the_cpu();
    }
    return trace;
  }
};

TEST_F(ServingSoak, EveryStepOfOneGraphIsRight) {
  const ServingTrace trace = play(kDecodes);
  // It had what it is for.
  EXPECT_GE(trace.joined(), steps() / 20);
  EXPECT_GE(trace.joined_behind_a_prefix(), steps() / 100);
  EXPECT_GE(trace.stalled(), steps() / 1000);
}

TEST_F(ServingSoak, EveryStepWithChunksIsRight) {
  const ServingTrace trace = play(kMixtures);
  EXPECT_GE(trace.chunks(), steps() / 20);
  EXPECT_GE(trace.joined(), steps() / 20);
  EXPECT_GE(trace.joined_behind_a_prefix(), steps() / 100);
}

}  // namespace
}  // namespace openmsa::test
