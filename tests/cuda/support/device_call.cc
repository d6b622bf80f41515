#include "cuda/support/device_call.h"

#include <gtest/gtest.h>

#include <list>
#include <utility>

namespace openmsa::test {

DeviceCall::DeviceCall(const Layer& layer, openmsa_op op, TensorMap outputs)
    : op_(op),
      plan_(layer.on(OPENMSA_BACKEND_CUDA).config),
      outputs_(std::move(outputs)),
      tensors_(gather(layer, op, outputs_)),
      workspace_(plan_.workspace_bytes(op)) {
  for (const char* name : tensor_names()) {
    openmsa_tensor& tensor = at(tensors_, name);
    if (tensor.rank == 0) continue;
    const auto output = outputs_.find(name);
    const Buffer& buffer = output != outputs_.end() ? output->second : layer.tensors.at(name);
    const auto [entry, is_new] = memory_.emplace(name, buffer.bytes().size());
    entry->second.upload(buffer.bytes());
    tensor.data = entry->second.data();
  }
}

void DeviceCall::update(const Layer& layer) {
  for (auto& [name, memory] : memory_) {
    if (!outputs_.contains(name)) memory.upload(layer.tensors.at(name).bytes());
  }
}

void DeviceCall::poison() {
  for (const auto& [name, buffer] : outputs_) memory_.at(name).upload(buffer.bytes());
  workspace_.poison();
}

void DeviceCall::enqueue(cudaStream_t stream) const {
  plan_.run(op_, tensors_, {workspace_.data(), workspace_.bytes(), stream});
}

TensorMap DeviceCall::results() const {
  require_cuda(cudaDeviceSynchronize(), "the kernels of the call");
  for (const auto& [name, memory] : memory_) EXPECT_TRUE(memory.is_fenced()) << "written past the ends of " << name;
  EXPECT_TRUE(workspace_.is_fenced()) << "written past the ends of the workspace";
  TensorMap results = outputs_;
  for (auto& [name, buffer] : results) buffer.assign_bytes(memory_.at(name).download());
  return results;
}

void run_on_device(const Layer& layer, openmsa_op op, TensorMap& outputs, const Rebind& rebind) {
  DeviceCall call(layer, op, outputs);
  std::list<DeviceMemory> placed;
  if (rebind) {
    rebind(call.tensors(), [&](const Buffer& buffer) {
      DeviceMemory& memory = placed.emplace_back(buffer.bytes().size());
      memory.upload(buffer.bytes());
      return memory.data();
    });
  }
  call.enqueue();
  outputs = call.results();
}

}  // namespace openmsa::test
