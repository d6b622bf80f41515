#include "support/run.h"

#include <algorithm>

namespace openmsa::test {
namespace {

const Device*& the_device() {
  static const Device* registered = nullptr;
  return registered;
}

}  // namespace

bool register_device(const Device& added) {
  the_device() = &added;
  return true;
}

const Device* registered_device() { return the_device(); }

std::vector<Backend> backends() {
  if (const Device* device = registered_device()) return device->backends();
  return {{OPENMSA_BACKEND_REFERENCE, OPENMSA_FLOAT32, 32}, {OPENMSA_BACKEND_CPU, OPENMSA_FLOAT32, 32}};
}

std::vector<Backend> judged_backends() {
  std::vector<Backend> result = backends();
  std::erase_if(result, [](const Backend& backend) { return backend.id == OPENMSA_BACKEND_REFERENCE; });
  return result;
}

std::string backend_name(const Backend& backend) {
  if (backend.id == OPENMSA_BACKEND_REFERENCE) return "reference";
  if (backend.id == OPENMSA_BACKEND_CPU) return "cpu";
  return "cuda_block" + std::to_string(backend.block_size);
}

void PrintTo(const Backend& backend, std::ostream* out) { *out << backend_name(backend); }

void run_into(const Layer& layer, openmsa_op op, TensorMap& outputs, const Rebind& rebind) {
  if (layer.config.backend == OPENMSA_BACKEND_CUDA) return registered_device()->run(layer, op, outputs, rebind);
  Tensors tensors = gather(layer, op, outputs);
  if (rebind) rebind(tensors, [](const Buffer& buffer) { return buffer.view().data; });
  run_on_host(layer, op, tensors);
}

TensorMap run(const Layer& layer, openmsa_op op, const std::vector<std::string>& names) {
  TensorMap outputs = poisoned_outputs(layer, op, names);
  run_into(layer, op, outputs);
  return outputs;
}

void OnAnyBackend::SetUp() {
  const Device* device = registered_device();
  const std::string obstacle = device == nullptr ? "" : device->obstacle();
  if (!obstacle.empty()) GTEST_SKIP() << obstacle;
}

LayerShape OnBackend::served(LayerShape shape) const {
  shape.dtype = GetParam().dtype;
  shape.block_size = GetParam().block_size;
  return shape;
}

}  // namespace openmsa::test
