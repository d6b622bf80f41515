#include "device_call.h"

#include <list>

#include "api/check.h"
#include "core/error.h"
#include "io/error.h"
#include "plan/plan.h"

namespace openmsa::cli {
namespace {

using T = Tensors;

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

double run_on_device(Device& device, const Plan& plan, openmsa_op op, const Tensors& tensors) {
  Tensors on_device = tensors;
  std::list<DeviceBuffer> buffers;
  for (TensorMember member :
       {&T::cu_seqlens_q, &T::cu_seqlens_k, &T::seqlens_k, &T::block_table, &T::q, &T::k, &T::v, &T::index_q,
        &T::index_k, &T::k_cache, &T::v_cache, &T::index_k_cache, &T::topk_indices, &T::o, &T::lse}) {
    openmsa_tensor& tensor = on_device.*member;
    if (!present(tensor)) continue;
    const std::size_t bytes = tensor_bytes(tensor);
    if (bytes == 0) continue;  // its address is not used
    tensor.data = buffers.emplace_back(device, bytes).data();
    device.copy(tensor.data, (tensors.*member).data, bytes);
  }
  const DeviceBuffer workspace(device, plan.workspace_bytes(op));
  const double milliseconds = device.time([&] { plan.run(op, on_device, workspace.workspace()); });
  for (TensorMember member : {&T::o, &T::lse, &T::topk_indices}) {
    const openmsa_tensor& tensor = tensors.*member;
    const bool is_result = present(tensor) && (member != &T::topk_indices || op == OPENMSA_OP_SELECT_BLOCKS);
    if (is_result) device.copy(tensor.data, (on_device.*member).data, tensor_bytes(tensor));
  }
  return milliseconds;
}

}  // namespace openmsa::cli
