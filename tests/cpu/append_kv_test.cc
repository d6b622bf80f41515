#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/shapes.h"

namespace openmsa::test {
namespace {

class AppendKv : public testing::TestWithParam<NamedShape> {};

std::vector<NamedShape> paged(std::vector<NamedShape> shapes) {
  std::erase_if(shapes, [](const NamedShape& named) { return named.shape.page_size == 0; });
  return shapes;
}
INSTANTIATE_TEST_SUITE_P(Shapes, AppendKv, testing::ValuesIn(paged(all_shapes())), shape_name);
INSTANTIATE_TEST_SUITE_P(Fp8Shapes, AppendKv, testing::ValuesIn(paged(fp8_shapes())), shape_name);

/// New rows for the tail of every sequence, into copies of the caches (and of scales per token) on both backends.
TEST_P(AppendKv, MatchesTheReferenceBitByBit) {
  const Layer layer = with_new_keys(make_layer(GetParam().shape), 3);
  TensorMap before = poisoned_outputs(layer, OPENMSA_OP_APPEND_KV);
  for (auto& [name, buffer] : before) buffer = layer.tensors.at(name);
  TensorMap got = before, expected = before;
  run_into(layer, OPENMSA_OP_APPEND_KV, got);
  run_into(layer.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_APPEND_KV, expected);
  expect_same_bits(got, expected);
  for (const auto& [name, cache] : before) EXPECT_FALSE(cache.same_bits(got.at(name))) << name << " did not change";
}

/// A cache filled token by token holds what one filled at once holds.
TEST(AppendKvSteps, OneByOneEqualsAllAtOnce) {
  const LayerShape shape{.page_size = 16, .seqlens_q = {45}, .seqlens_k = {45}};
  const Layer whole = make_layer(shape);
  TensorMap at_once = {{"k_cache", Buffer(shape.dtype, whole.tensors.at("k_cache").shape())},
                       {"v_cache", Buffer(shape.dtype, whole.tensors.at("v_cache").shape())},
                       {"index_k_cache", Buffer(shape.dtype, whole.tensors.at("index_k_cache").shape())}};
  TensorMap stepwise = at_once;
  run_into(whole, OPENMSA_OP_APPEND_KV, at_once);
  for (std::int64_t j = 0; j < 45; ++j) {
    Layer step = whole;
    step.tensors["cu_seqlens_q"] = int_buffer({0, 1});
    step.tensors["seqlens_k"] = int_buffer({j + 1});
    for (const char* name : {"k", "v", "index_k"}) step.tensors[name] = rows(whole.tensors.at(name), j, 1);
    run_into(step, OPENMSA_OP_APPEND_KV, stepwise);
  }
  expect_same_bits(stepwise, at_once);
  EXPECT_TRUE(at_once.at("k_cache").same_bits(whole.tensors.at("k_cache")));
}

}  // namespace
}  // namespace openmsa::test
