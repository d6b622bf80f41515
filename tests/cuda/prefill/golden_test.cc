// The layers of the golden files on the GPU.
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "golden/golden_layer.h"

namespace openmsa::test {
namespace {

class DeviceGolden : public OnHopper {};

TEST_F(DeviceGolden, LayerMatchesTransformers) {
  const io::SafetensorsFile file = golden_layer("m3_layer_d128");
  const Layer layer = read_layer(file);
  expect_golden(file, layer, run_on_device(layer, OPENMSA_OP_MSA_ATTENTION), tolerance(OPENMSA_BFLOAT16));
}

TEST_F(DeviceGolden, LayerWithShortBlocksIsRefused) {
  const io::SafetensorsFile file = golden_layer("m3_layer_small");
  EXPECT_THROW(run_on_device(read_layer(file), OPENMSA_OP_MSA_ATTENTION), Error);
}

}  // namespace
}  // namespace openmsa::test
