#include "support/append_kv.h"

#include <utility>

namespace openmsa::test {

TensorMap stored(const Layer& layer) {
  TensorMap result = poisoned_outputs(layer, OPENMSA_OP_APPEND_KV);
  for (auto& [name, buffer] : result) buffer = layer.tensors.at(name);
  return result;
}

TensorMap appended(const Layer& layer, TensorMap before) {
  run_into(layer, OPENMSA_OP_APPEND_KV, before);
  return before;
}

TensorMap judged_append(const Layer& layer, TensorMap before) {
  return appended(layer.on(quick_judge(layer)), std::move(before));
}

void expect_appended(const Layer& layer, const TensorMap& before) {
  const TensorMap got = appended(layer, before);
  expect_same_bits(got, judged_append(layer, before));
  for (const auto& [name, buffer] : before) EXPECT_FALSE(buffer.same_bits(got.at(name))) << name << " did not change";
}

}  // namespace openmsa::test
