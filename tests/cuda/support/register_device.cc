// Part of every program whose tests run on the GPU: registers it for the bodies that all backends share.
#include "cuda/decode/cases.h"
#include "cuda/support/cases.h"
#include "cuda/support/device_call.h"

namespace openmsa::test {
namespace {

std::vector<NamedShape> joined(std::vector<NamedShape> shapes, const std::vector<NamedShape>& more) {
  shapes.insert(shapes.end(), more.begin(), more.end());
  return shapes;
}

class Hopper : public Device {
 public:
  std::string obstacle() const override {
    int device = 0, major = 0, minor = 0;
    if (cudaGetDevice(&device) == cudaSuccess) {
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    }
    return major == 9 && minor == 0 ? "" : "no Hopper GPU (compute capability 9.0) can be used here";
  }

  std::vector<Backend> backends() const override {
    return {{OPENMSA_BACKEND_CUDA, OPENMSA_BFLOAT16, 64}, {OPENMSA_BACKEND_CUDA, OPENMSA_BFLOAT16, 128}};
  }

  std::vector<NamedShape> attention_shapes() const override { return joined(hopper_shapes(), decode_shapes()); }
  std::vector<NamedShape> selection_shapes() const override { return joined(attention_shapes(), fp8_index_shapes()); }

  void run(const Layer& layer, openmsa_op op, TensorMap& outputs, const Rebind& rebind) const override {
    run_on_device(layer, op, outputs, rebind);
  }
};

const Hopper kHopper;
const bool kIsRegistered = register_device(kHopper);

}  // namespace
}  // namespace openmsa::test
