// The layers of the golden files on every backend: as one call, and their last tokens behind a cache of the earlier
// ones.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "golden/golden_layer.h"

namespace openmsa::test {
namespace {

class GoldenLayer : public OnAnyBackend, public testing::WithParamInterface<std::tuple<std::string, Backend>> {
 protected:
  /// The CUDA backend has no kernels for kv_blocks of 32.
  bool is_served() const { return layer_.config.backend != OPENMSA_BACKEND_CUDA || layer_.shape.block_size >= 64; }

  /// On the reference nothing but the result is rounded, to fp32.
  Tolerance allowed() const {
    return tolerance(layer_.config.backend == OPENMSA_BACKEND_REFERENCE ? OPENMSA_FLOAT32 : OPENMSA_BFLOAT16);
  }

  const io::SafetensorsFile file_ = golden_layer(std::get<std::string>(GetParam()));
  const Layer layer_ = read_layer(file_).on(std::get<Backend>(GetParam()).id);
};
INSTANTIATE_TEST_SUITE_P(Files, GoldenLayer,
                         testing::Combine(testing::Values("m3_layer_small", "m3_layer_d128"),
                                          testing::ValuesIn(backends())),
                         [](const auto& info) {
                           return std::get<std::string>(info.param) + "_" + backend_name(std::get<Backend>(info.param));
                         });

TEST_P(GoldenLayer, MatchesTransformers) {
  if (!is_served()) {
    EXPECT_THROW(run(layer_, OPENMSA_OP_MSA_ATTENTION), Error);
  } else {
    expect_golden(file_, layer_, run(layer_, OPENMSA_OP_MSA_ATTENTION), allowed());
  }
}

TEST_P(GoldenLayer, LastTokensMatchTransformers) {
  if (!is_served()) GTEST_SKIP() << "not served";
  const std::int64_t end = layer_.total_q();
  for (std::int64_t count = 1; count <= 16; ++count) {
    const Layer last = excerpt(layer_, 0, end - count, end).on(layer_.config.backend);
    for (const std::int32_t page_size : {0, 16, layer_.shape.block_size}) {
      SCOPED_TRACE(testing::Message() << count << " tokens, page_size " << page_size);
      const Layer decode = page_size == 0 ? last : in_pages(last, page_size);
      expect_golden(file_, decode, run(decode, OPENMSA_OP_MSA_ATTENTION), allowed(), end - count);
    }
  }
}

}  // namespace
}  // namespace openmsa::test
