#include "judge/call.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <string_view>

namespace openmsa::judge {
namespace {

constexpr std::string_view kFigures[] = {"block_scores", "lse", "kl_loss", "block_recall", "score_recall"};
constexpr std::string_view kScales[] = {"k_scale", "v_scale", "index_k_scale"};

bool is_one_of(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_reference(const Layer& layer) {
  return layer.config.backend == OPENMSA_BACKEND_REFERENCE || layer.config.backend == OPENMSA_BACKEND_REFERENCE_FLOAT32;
}

std::int64_t num_pages(const Layer& layer) {
  const auto cache = layer.tensors.find("k_cache");
  return cache == layer.tensors.end() ? 0 : cache->second.shape()[0];
}

/// Extent of what openmsa_tensor_extent names.
std::int64_t extent(const Layer& layer, std::string_view dimension) {
  if (dimension == "total_q") return layer.total_q();
  if (dimension == "total_k") return layer.total_k();
  if (dimension == "num_blocks") return layer.max_blocks();
  if (dimension == "num_heads_q") return layer.shape.num_heads_q;
  if (dimension == "num_heads_kv") return layer.shape.num_heads_kv;
  if (dimension == "head_dim") return layer.shape.head_dim;
  if (dimension == "index_dim") return layer.shape.index_dim;
  if (dimension == "topk") return layer.shape.topk;
  if (dimension == "page_size") return layer.shape.page_size;
  if (dimension == "num_pages") return num_pages(layer);
  if (dimension == "key_tokens") return num_pages(layer) * layer.shape.page_size;
  if (dimension == "1") return 1;
  throw std::logic_error("no operation writes a tensor of " + std::string(dimension));
}

Shape shape_of(const Layer& layer, const char* name) {
  if (name == std::string_view("index_k_scale") && layer.config.index_scale_per_block != 0) return {num_pages(layer)};
  Shape shape;
  while (const char* dimension = openmsa_tensor_extent(name, static_cast<std::int32_t>(shape.size()))) {
    shape.push_back(extent(layer, dimension));
  }
  return shape;
}

openmsa_dtype dtype_of(const Layer& layer, const char* name) {
  const openmsa_dtype dtype = openmsa_tensor_dtype(&layer.config, name);
  if (!is_reference(layer)) return dtype;
  if (is_one_of(kFigures, name)) return OPENMSA_FLOAT64;
  const bool is_rounded = dtype == OPENMSA_BFLOAT16 || dtype == OPENMSA_FLOAT16;
  return is_rounded && !std::string_view(name).ends_with("_cache") ? OPENMSA_FLOAT32 : dtype;
}

/// 64-byte aligned memory of exactly `bytes`, poisoned, so that a sanitizer sees a step past its end.
class PoisonedWorkspace {
 public:
  explicit PoisonedWorkspace(std::size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    memory_.reset(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{64})));
    std::memset(memory_.get(), 0xff, bytes);
  }
  openmsa_workspace get() const { return {memory_.get(), bytes_, nullptr}; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete (memory, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t bytes_;
};

}  // namespace

TensorMap poisoned_outputs(const Layer& layer, openmsa_op op, const std::vector<std::string>& names) {
  TensorMap outputs;
  for (const char* name : tensor_names()) {
    if (!writes(layer.config, op, name)) continue;
    if (is_one_of(kScales, name) && layer.shape.scales < Scales::kPerToken) continue;  // read, or absent
    const bool is_ablation =
        op == OPENMSA_OP_KL_LOSS && (name == std::string_view("d_q") || name == std::string_view("d_k"));
    if (names.empty() ? is_ablation : std::find(names.begin(), names.end(), name) == names.end()) continue;
    outputs[name] = Buffer(dtype_of(layer, name), shape_of(layer, name));
  }
  return outputs;
}

Tensors gather(const Layer& layer, openmsa_op op, const TensorMap& outputs) {
  Tensors result = openmsa::tensors();
  for (const char* name : tensor_names()) {
    const auto read = layer.tensors.find(name), written = outputs.find(name);
    if (reads(layer.config, op, name) && read != layer.tensors.end()) at(result, name) = read->second.view();
    if (written != outputs.end()) at(result, name) = written->second.view();
  }
  return result;
}

void run_on_host(const Layer& layer, openmsa_op op, const Tensors& tensors) {
  const Plan plan(layer.config);
  const PoisonedWorkspace workspace(plan.workspace_bytes(op));
  plan.run(op, tensors, workspace.get());
}

TensorMap run_on_host(const Layer& layer, openmsa_op op, const std::vector<std::string>& names) {
  TensorMap outputs = poisoned_outputs(layer, op, names);
  run_on_host(layer, op, gather(layer, op, outputs));
  return outputs;
}

TensorMap judged(const Layer& layer, openmsa_op op, openmsa_backend judge, const std::vector<std::string>& names) {
  const Layer other = layer.on(judge);
  TensorMap outputs = poisoned_outputs(other, op, names);
  const auto o = outputs.find("o");
  if (o != outputs.end()) o->second = Buffer(OPENMSA_FLOAT32, o->second.shape());
  run_on_host(other, op, gather(other, op, outputs));
  return outputs;
}

}  // namespace openmsa::judge
