#include "cuda/support/judge.h"

#include <utility>

namespace openmsa::test {

TensorMap judged(const Layer& layer, openmsa_op op, openmsa_backend judge) {
  const Layer other = layer.on(judge);
  TensorMap outputs = poisoned_outputs(other, op);
  const auto o = outputs.find("o");
  if (o != outputs.end()) o->second = Buffer(OPENMSA_FLOAT32, o->second.shape());
  run_into(other, op, outputs);
  return outputs;
}

void expect_selection(const Layer& layer, const Buffer& topk_indices, openmsa_backend judge) {
  expect_same_selection(layer, topk_indices, judged(layer, OPENMSA_OP_SELECT_BLOCKS, judge).at("topk_indices"),
                        judged(layer, OPENMSA_OP_BLOCK_SCORES, judge).at("block_scores"));
}

void expect_close(const Layer& layer, const TensorMap& got, const TensorMap& expected) {
  const Tolerance allowed = tolerance(layer.config.dtype);
  EXPECT_LT(relative_error(got.at("o"), expected.at("o")), allowed.o);
  const auto lse = got.find("lse");
  if (lse != got.end()) {
    EXPECT_LT(absolute_error(lse->second, expected.at("lse")), allowed.lse);
  }
}

void expect_attention(const Layer& layer, openmsa_backend judge) {
  expect_close(layer, run_on_device(layer, OPENMSA_OP_SPARSE_ATTENTION),
               judged(layer, OPENMSA_OP_SPARSE_ATTENTION, judge));
}

void expect_layer(const Layer& layer, openmsa_backend judge) {
  const TensorMap whole = run_on_device(layer, OPENMSA_OP_MSA_ATTENTION);
  expect_selection(layer, whole.at("topk_indices"), judge);
  Layer selected = layer;
  selected.add({{"topk_indices", whole.at("topk_indices")}});
  expect_close(layer, whole, judged(selected, OPENMSA_OP_SPARSE_ATTENTION, judge));
}

}  // namespace openmsa::test
