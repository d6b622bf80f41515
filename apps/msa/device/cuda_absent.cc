// Takes the place of device/cuda.cc in a build without CUDA.
#include <stdexcept>

#include "msa/device/device.h"

namespace openmsa::cli {

std::unique_ptr<Device> make_cuda_device() {
  throw std::runtime_error("this build of msa has no CUDA backend (configured with OPENMSA_CUDA=OFF)");
}

}  // namespace openmsa::cli
