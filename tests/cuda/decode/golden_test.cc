// The last tokens of the golden layers behind a cache of the earlier ones.
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "golden/golden_layer.h"

namespace openmsa::test {
namespace {

class DecodeGolden : public OnHopper {};

TEST_F(DecodeGolden, LastTokensMatchTransformers) {
  const io::SafetensorsFile file = golden_layer("m3_layer_d128");
  const Layer layer = read_layer(file);
  const std::int64_t end = layer.total_q();
  for (std::int64_t count = 1; count <= 16; ++count) {
    const Layer last = excerpt(layer, 0, end - count, end);
    for (const std::int32_t page_size : {0, 16, 128}) {
      SCOPED_TRACE(testing::Message() << count << " tokens, page_size " << page_size);
      const Layer decode = page_size == 0 ? last : in_pages(last, page_size);
      expect_golden(file, decode, run_on_device(decode, OPENMSA_OP_MSA_ATTENTION), tolerance(OPENMSA_BFLOAT16),
                    end - count);
    }
  }
}

}  // namespace
}  // namespace openmsa::test
