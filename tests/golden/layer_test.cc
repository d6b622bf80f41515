// The layers of the golden files on the host's backends.
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "golden/golden_layer.h"

namespace openmsa::test {
namespace {

class GoldenLayer : public testing::TestWithParam<std::tuple<std::string, openmsa_backend>> {};
INSTANTIATE_TEST_SUITE_P(Files, GoldenLayer,
                         testing::Combine(testing::Values("m3_layer_small", "m3_layer_d128"),
                                          testing::Values(OPENMSA_BACKEND_REFERENCE, OPENMSA_BACKEND_CPU)),
                         [](const auto& info) {
                           return std::get<0>(info.param) +
                                  (std::get<1>(info.param) == OPENMSA_BACKEND_CPU ? "_cpu" : "_reference");
                         });

TEST_P(GoldenLayer, MatchesTransformers) {
  const io::SafetensorsFile file = golden_layer(std::get<0>(GetParam()));
  const Layer layer = read_layer(file).on(std::get<1>(GetParam()));
  const bool is_reference = layer.config.backend == OPENMSA_BACKEND_REFERENCE;
  expect_golden(file, layer, run(layer, OPENMSA_OP_MSA_ATTENTION),
                tolerance(is_reference ? OPENMSA_FLOAT32 : OPENMSA_BFLOAT16));
}

}  // namespace
}  // namespace openmsa::test
