// A library call on the CUDA backend with tensors in host memory.
#pragma once

#include <openmsa/openmsa.hpp>

#include "msa/device/device.h"
#include "msa/tensors.h"

namespace openmsa::cli {

/// Checks lengths, page numbers and block indices, which the CUDA backend cannot. io::InputError: what is wrong with
/// them.
void check_values(const Config& config, openmsa_op op, const Tensors& tensors);

/// Copies all contiguous `tensors` to `device`, runs `op`, and copies back what it writes. `plan` is that of `config`.
/// Returns the milliseconds of the call without the copies.
double run_on_device(Device& device, const Config& config, const Plan& plan, openmsa_op op, const Tensors& tensors);

}  // namespace openmsa::cli
