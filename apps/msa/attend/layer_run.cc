#include "msa/attend/layer_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <limits>
#include <utility>

#include "io/dtype.h"
#include "io/error.h"
#include "msa/device/call.h"
#include "msa/machine.h"

namespace openmsa::cli {
namespace {

using nlohmann::ordered_json;
using T = Tensors;
using Clock = std::chrono::steady_clock;

double to_milliseconds(Clock::duration duration) { return std::chrono::duration<double, std::milli>(duration).count(); }

ordered_json describe(const openmsa_tensor& tensor) {
  return {{"dtype", io::dtype_name(tensor.dtype)},
          {"shape", std::vector<std::int64_t>(tensor.shape, tensor.shape + tensor.rank)}};
}

}  // namespace

LayerRun::LayerRun(LayerInput input, const LayerOptions& options)
    : input_(std::move(input)),
      options_(options),
      data_(input_.tensors()),
      config_(config()),
      plan_(config_),
      progress_("attend", num_stages()),
      device_(options.backend.is_cuda() ? make_cuda_device() : nullptr) {}

void LayerRun::check_conflicts() const {
  const bool given = present(data_.topk_indices);
  if (given && options_.dense)
    throw io::InputError("--dense: the input has topk_indices, which dense attention ignores");
  if (given && (options_.num_init_blocks || options_.num_local_blocks)) {
    throw io::InputError("--num-init-blocks, --num-local-blocks: the input has topk_indices, nothing is selected");
  }
  if (given && options_.topk && *options_.topk != input_.extent("topk_indices", 3, 2)) {
    throw io::InputError("--topk: expected " + std::to_string(input_.extent("topk_indices", 3, 2)) +
                         " as in the input's topk_indices, got " + std::to_string(*options_.topk));
  }
  if (options_.backward) input_.require("d_o");
  if (options_.backward && input_.is_paged()) {
    throw io::InputError("--backward: expected contiguous keys (k, v), got a paged cache");
  }
}

Config LayerRun::config() const {
  check_conflicts();
  Config config = input_.layer_config();
  config.backend = options_.backend.id();
  config.num_threads = options_.backend.threads;
  config.softmax_scale = options_.softmax_scale;
  config.block_size = options_.block_size.value_or(config.block_size);
  config.topk = options_.topk.value_or(config.topk);
  config.num_init_blocks = options_.num_init_blocks.value_or(config.num_init_blocks);
  config.num_local_blocks = options_.num_local_blocks.value_or(config.num_local_blocks);
  if (present(data_.topk_indices)) {
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    config.topk = static_cast<std::int32_t>(std::min(kMost, input_.extent("topk_indices", 3, 2)));
  }
  return config;
}

int LayerRun::num_stages() const { return 1 + is_selecting() + (options_.backward ? 1 + has_index_branch() : 0); }

openmsa_tensor LayerRun::make(std::string name, openmsa_dtype dtype, std::vector<std::int64_t> shape) {
  std::size_t bytes = openmsa_dtype_bytes(dtype);
  for (std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
  Result& result = results_.emplace_back();
  result.name = std::move(name);
  void* memory = result.memory.reserve(std::max<std::size_t>(bytes, 1)).data;
  result.tensor = openmsa_contiguous(memory, dtype, static_cast<std::int32_t>(shape.size()), shape.data());
  return result.tensor;
}

openmsa_tensor LayerRun::make_like(std::string name, const openmsa_tensor& tensor) {
  return make(std::move(name), tensor.dtype, {tensor.shape, tensor.shape + tensor.rank});
}

/// Milliseconds that the operation takes, without copies to a device and back.
double LayerRun::call(openmsa_op op, const Tensors& tensors) {
  if (device_) {
    check_values(config_, op, tensors);
    return run_on_device(*device_, config_, plan_, op, tensors);
  }
  const auto start = Clock::now();
  plan_.run(op, tensors, workspace_);
  return to_milliseconds(Clock::now() - start);
}

/// A stage cannot tell how far it is; the progress bar shows the stages done and, while one runs, its name and seconds.
void LayerRun::run(openmsa_op op, std::initializer_list<TensorMember> members) {
  const char* stage = name_of(op);
  const Tensors tensors = pick(data_, members);
  const auto start = Clock::now();
  auto done = std::async(std::launch::async, [&] { return call(op, tensors); });
  while (done.wait_for(std::chrono::milliseconds(100)) != std::future_status::ready) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - start).count();
    progress_.update(static_cast<std::int64_t>(milliseconds_.size()),
                     std::string(stage) + " " + std::to_string(seconds) + " s");
  }
  milliseconds_[stage] = done.get();
}

void LayerRun::forward() {
  const std::int64_t total_q = data_.q.shape[0];
  if (is_selecting()) {
    input_.require("index_q");
    input_.require(input_.is_paged() ? "index_k_cache" : "index_k");
    data_.topk_indices = make("topk_indices", OPENMSA_INT32, {config_.num_heads_kv, total_q, config_.topk});
    run(OPENMSA_OP_SELECT_BLOCKS, {&T::cu_seqlens_q, &T::cu_seqlens_k, &T::seqlens_k, &T::block_table, &T::index_q,
                                   &T::index_k, &T::index_k_cache, &T::topk_indices});
  }
  data_.o = make_like("o", data_.q);
  data_.lse = make("lse", OPENMSA_FLOAT32, {total_q, config_.num_heads_q});
  run(options_.dense ? OPENMSA_OP_DENSE_ATTENTION : OPENMSA_OP_SPARSE_ATTENTION,
      {&T::cu_seqlens_q, &T::cu_seqlens_k, &T::seqlens_k, &T::block_table, &T::q, &T::k, &T::v, &T::k_cache,
       &T::v_cache, &T::topk_indices, &T::o, &T::lse});
}

void LayerRun::backward() {
  data_.d_q = make_like("d_q", data_.q);
  data_.d_k = make_like("d_k", data_.k);
  data_.d_v = make_like("d_v", data_.v);
  run(options_.dense ? OPENMSA_OP_DENSE_ATTENTION_BACKWARD : OPENMSA_OP_SPARSE_ATTENTION_BACKWARD,
      {&T::cu_seqlens_q, &T::cu_seqlens_k, &T::q, &T::k, &T::v, &T::topk_indices, &T::o, &T::lse, &T::d_o, &T::d_q,
       &T::d_k, &T::d_v});
  if (!has_index_branch()) return;
  input_.require("index_q");
  input_.require("index_k");
  data_.kl_loss = make("kl_loss", OPENMSA_FLOAT32, {1});
  data_.d_index_q = make_like("d_index_q", data_.index_q);
  data_.d_index_k = make_like("d_index_k", data_.index_k);
  run(OPENMSA_OP_KL_LOSS, {&T::cu_seqlens_q, &T::cu_seqlens_k, &T::q, &T::k, &T::lse, &T::index_q, &T::index_k,
                           &T::topk_indices, &T::kl_loss, &T::d_index_q, &T::d_index_k});
}

void LayerRun::write(const std::string& path) const {
  io::SafetensorsWriter writer;
  for (const Result& result : results_) writer.add(result.name, result.tensor);
  if (present(input_.tensors().topk_indices)) writer.add("topk_indices", input_.tensors().topk_indices);
  writer.write(path);
}

ordered_json LayerRun::figures() const {
  ordered_json outputs = ordered_json::object();
  for (const Result& result : results_) outputs[result.name] = describe(result.tensor);
  ordered_json figures = {
      {"operation", options_.dense   ? "dense"
                    : is_selecting() ? "msa"
                                     : "sparse"},
      {"backend", options_.backend.backend},
      {"threads", options_.backend.num_threads()},
      {"dtype", io::dtype_name(config_.dtype)},
      {"num_heads_q", config_.num_heads_q},
      {"num_heads_kv", config_.num_heads_kv},
      {"head_dim", config_.head_dim},
      {"page_size", config_.page_size},
      {"total_q", data_.q.shape[0]},
      {"outputs", outputs},
      {"milliseconds", milliseconds_},
  };
  if (!options_.dense) figures["block_size"] = config_.block_size;
  if (!options_.dense) figures["topk"] = config_.topk;
  if (is_selecting()) figures["index_dim"] = config_.index_dim;
  if (present(data_.kl_loss)) {
    const float kl_loss = *static_cast<const float*>(data_.kl_loss.data);
    figures["kl_loss"] = std::isfinite(kl_loss) ? ordered_json(kl_loss) : ordered_json(nullptr);
  }
  figures["machine"] = machine_facts();
  return figures;
}

}  // namespace openmsa::cli
