#include "msa/device/call.h"

#include <list>

#include "io/error.h"

namespace openmsa::cli {
namespace {

std::size_t tensor_bytes(const openmsa_tensor& tensor) {
  std::size_t bytes = openmsa_dtype_bytes(tensor.dtype);
  for (int d = 0; d < tensor.rank; ++d) bytes *= static_cast<std::size_t>(tensor.shape[d]);
  return bytes;
}

}  // namespace

void check_values(const Config& config, openmsa_op op, const Tensors& tensors) try {
  Config on_host = config;
  on_host.backend = OPENMSA_BACKEND_CPU;
  on_host.num_threads = 1;
  Plan(on_host).check_tensors(op, tensors);
} catch (const Error& error) {
  throw io::InputError(error.what());
}

double run_on_device(Device& device, const Config& config, const Plan& plan, openmsa_op op, const Tensors& tensors) {
  Tensors on_device = tensors;
  std::list<DeviceBuffer> buffers;
  for (const char* name : tensor_names()) {
    openmsa_tensor& tensor = at(on_device, name);
    const std::size_t bytes = present(tensor) ? tensor_bytes(tensor) : 0;
    if (bytes == 0) continue;  // its address is not used
    tensor.data = buffers.emplace_back(device, bytes).data();
    device.copy(tensor.data, at(tensors, name).data, bytes);
  }
  const DeviceBuffer workspace(device, plan.workspace_bytes(op));
  const double milliseconds = device.time([&] { plan.run(op, on_device, workspace.workspace()); });
  for (const char* name : tensor_names()) {
    const openmsa_tensor& tensor = at(tensors, name);
    if (!present(tensor) || !writes(config, op, name)) continue;
    device.copy(tensor.data, at(on_device, name).data, tensor_bytes(tensor));
  }
  return milliseconds;
}

}  // namespace openmsa::cli
