// A call on the CUDA backend, made of a layer on the host.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "cuda/support/device_memory.h"
#include "support/run.h"

namespace openmsa::test {

/// The tensors of `layer` that `op` reads, with their strides, outputs and workspace, all in device memory; outputs and
/// workspace poisoned.
class DeviceCall {
 public:
  DeviceCall(const Layer& layer, openmsa_op op, TensorMap outputs);
  DeviceCall(const Layer& layer, openmsa_op op)
      : DeviceCall(layer, op, poisoned_outputs(layer.on(OPENMSA_BACKEND_CUDA), op)) {}

  /// Views of device memory, for a test to change.
  Tensors& tensors() { return tensors_; }
  /// Puts the values of `layer` in place of those that the call reads; sizes must be the same.
  void update(const Layer& layer);
  /// Outputs and workspace as before the first run.
  void poison();

  void enqueue(cudaStream_t stream = nullptr) const;
  /// Waits for the device; expects every fence to be whole.
  TensorMap results() const;

 private:
  openmsa_op op_;
  Plan plan_;
  TensorMap outputs_;  // their shapes; values as before the run
  Tensors tensors_;
  std::map<std::string, DeviceMemory> memory_;
  DeviceMemory workspace_;
};

/// What a Device does with a call.
void run_on_device(const Layer& layer, openmsa_op op, TensorMap& outputs, const Rebind& rebind);

/// make_layer for the GPU.
inline Layer device_layer(const LayerShape& shape, std::uint64_t seed = 1, std::uint64_t page_seed = 1) {
  return make_layer(shape, seed, page_seed).on(OPENMSA_BACKEND_CUDA);
}

}  // namespace openmsa::test
