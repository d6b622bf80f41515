// Operations on a layer by number: which tensors one takes and gives comes from the table that the library itself
// checks calls with.
#pragma once

#include "judge/layer.h"

namespace openmsa::judge {

/// Outputs of `op`, those in `names` or all (openmsa_kl_loss: all but the teacher's gradients; openmsa_append_kv:
/// caches of the layer's shape, scales where they are per token), poisoned. Float results have the plan's dtype, or
/// fp32 on the reference backends, whose figures are fp64.
TensorMap poisoned_outputs(const Layer& layer, openmsa_op op, const std::vector<std::string>& names = {});

/// The call's tensors: what `op` reads from `layer`, what it writes from `outputs`.
Tensors gather(const Layer& layer, openmsa_op op, const TensorMap& outputs);

/// Makes the call in this process with a poisoned workspace.
void run_on_host(const Layer& layer, openmsa_op op, const Tensors& tensors);

/// poisoned_outputs after a call in this process.
TensorMap run_on_host(const Layer& layer, openmsa_op op, const std::vector<std::string>& names = {});

/// run_on_host on the backend `judge`, with o in fp32.
TensorMap judged(const Layer& layer, openmsa_op op, openmsa_backend judge = OPENMSA_BACKEND_REFERENCE,
                 const std::vector<std::string>& names = {});

}  // namespace openmsa::judge
