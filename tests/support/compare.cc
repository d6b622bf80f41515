#include "support/compare.h"

namespace openmsa::test {

openmsa_backend quick_judge(const Layer& layer) {
  return layer.config.backend == OPENMSA_BACKEND_CPU ? OPENMSA_BACKEND_REFERENCE : OPENMSA_BACKEND_CPU;
}

void expect_same_selection(const Layer& layer, const Buffer& topk_indices, const Buffer& reference,
                           const Buffer& block_scores) {
  const std::vector<std::string> faults = selection_faults(layer, topk_indices, reference, block_scores);
  EXPECT_TRUE(faults.empty()) << faults.size() << " rows are wrong; " << faults.front();
}

void expect_selection(const Layer& layer, const Buffer& topk_indices, openmsa_backend judge) {
  expect_same_selection(layer, topk_indices, judged(layer, OPENMSA_OP_SELECT_BLOCKS, judge).at("topk_indices"),
                        judged(layer, OPENMSA_OP_BLOCK_SCORES, judge).at("block_scores"));
}

void expect_close(const Layer& layer, const TensorMap& got, const TensorMap& expected) {
  const Tolerance allowed = tolerance(layer.config);
  EXPECT_LT(relative_error(got.at("o"), expected.at("o")), allowed.o);
  const auto lse = got.find("lse");
  if (lse != got.end()) {
    EXPECT_LT(absolute_error(lse->second, expected.at("lse")), allowed.lse);
  }
}

void expect_attention(const Layer& layer, openmsa_backend judge) {
  expect_close(layer, run(layer, OPENMSA_OP_SPARSE_ATTENTION), judged(layer, OPENMSA_OP_SPARSE_ATTENTION, judge));
}

void expect_layer(const Layer& layer, openmsa_backend judge) {
  const TensorMap whole = run(layer, OPENMSA_OP_MSA_ATTENTION);
  expect_selection(layer, whole.at("topk_indices"), judge);
  Layer selected = layer;
  selected.add({{"topk_indices", whole.at("topk_indices")}});
  expect_close(layer, whole, judged(selected, OPENMSA_OP_SPARSE_ATTENTION, judge));
}

void expect_same_bits(const TensorMap& x, const TensorMap& y) {
  ASSERT_EQ(x.size(), y.size());
  for (const auto& [name, buffer] : x) EXPECT_TRUE(buffer.same_bits(y.at(name))) << name << " differs";
}

}  // namespace openmsa::test
