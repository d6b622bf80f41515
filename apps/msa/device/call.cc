#include "msa/device/call.h"

#include <list>

#include "api/check.h"
#include "api/operations.h"
#include "core/error.h"
#include "core/plan.h"
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
  api::check(core::make_plan(on_host, 1), op, tensors);
} catch (const core::Failure& failure) {
  throw io::InputError(failure.what());
}

double run_on_device(Device& device, const Config& config, const Plan& plan, openmsa_op op, const Tensors& tensors) {
  Tensors on_device = tensors;
  std::list<DeviceBuffer> buffers;
  for (const api::Field& field : api::fields()) {
    openmsa_tensor& tensor = on_device.*field.member;
    const std::size_t bytes = present(tensor) ? tensor_bytes(tensor) : 0;
    if (bytes == 0) continue;  // its address is not used
    tensor.data = buffers.emplace_back(device, bytes).data();
    device.copy(tensor.data, (tensors.*field.member).data, bytes);
  }
  const DeviceBuffer workspace(device, plan.workspace_bytes(op));
  const double milliseconds = device.time([&] { plan.run(op, on_device, workspace.workspace()); });
  const api::Operation operation = api::operation(op, config);
  for (std::uint32_t id = 0; id < api::kFieldCount; ++id) {
    const TensorMember member = api::fields()[id].member;
    const openmsa_tensor& tensor = tensors.*member;
    if (!present(tensor) || !api::contains(operation.writes | operation.writes_optional, id)) continue;
    device.copy(tensor.data, (on_device.*member).data, tensor_bytes(tensor));
  }
  return milliseconds;
}

}  // namespace openmsa::cli
