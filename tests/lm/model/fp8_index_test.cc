#include "lm/model/fp8_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace openmsa::test {
namespace {

TEST(Fp8Index, SelectsByTheRoundedKeys) {
  // The last of 20 tokens in kv_blocks of 8 keeps its own and one of two. index_q is 1 everywhere, so scores are sums:
  // token 3 has 448 + 199 + 10 = 657, token 9 has 448 + 201 = 649. In e4m3, whose step here is 16, 199 is 192 and 201
  // is 208: 650 against 656.
  lm::ModelConfig model;
  model.num_heads_q = model.num_heads_kv = 1;
  model.head_dim = model.index_dim = model.block_size = 8;
  model.topk = 2;
  constexpr std::int64_t kRows = 20, kDim = 8;
  lm::AttentionActivations activations;
  for (auto* keys : {&activations.k, &activations.v, &activations.index_k}) keys->assign(kRows * kDim, 0.0f);
  activations.index_q.assign(kRows * kDim, 1.0f);
  const auto set_key = [&](std::int64_t token, std::vector<float> values) {
    std::ranges::copy(values, activations.index_k.begin() + token * kDim);
  };
  set_key(3, {448, 199, 10});
  set_key(9, {448, 201});

  std::vector<std::int32_t> topk_indices(kRows * 2);
  lm::select_with_fp8_index(model, kRows, activations, view(topk_indices.data(), {1, kRows, 2}));
  EXPECT_THAT(std::vector(topk_indices.end() - 2, topk_indices.end()), testing::ElementsAre(1, 2));

  Config plain = lm::attention_config(model);
  plain.max_total_q = plain.max_seqlen_k = kRows;
  Tensors tensors = openmsa::tensors();
  tensors.index_q = view(activations.index_q.data(), {kRows, 1, kDim});
  tensors.index_k = view(activations.index_k.data(), {kRows, kDim});
  tensors.topk_indices = view(topk_indices.data(), {1, kRows, 2});
  Workspace workspace;
  Plan(plain).run(OPENMSA_OP_SELECT_BLOCKS, tensors, workspace);
  EXPECT_THAT(std::vector(topk_indices.end() - 2, topk_indices.end()), testing::ElementsAre(0, 2));
}

}  // namespace
}  // namespace openmsa::test
