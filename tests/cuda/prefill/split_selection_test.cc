// Few queries over many keys: the keys of one row are shared out between blocks of the grid, whose lists are merged.
#include <utility>

#include "cuda/support/cases.h"
#include "cuda/support/device_call.h"
#include "cuda/support/hopper.h"
#include "support/compare.h"

namespace openmsa::test {
namespace {

NamedShape split_case(std::string name, LayerShape shape) {
  shape.dtype = OPENMSA_BFLOAT16;
  return {std::move(name), std::move(shape)};
}

std::vector<NamedShape> cases() {
  return {
      split_case("one_query",
                 {.index_dim = 128, .block_size = 128, .topk = 16, .seqlens_q = {1}, .seqlens_k = {40000}}),
      split_case("five_queries", {.block_size = 64, .topk = 64, .seqlens_q = {5}, .seqlens_k = {20000}}),
      split_case(
          "three_heads",
          {.num_heads_q = 3, .num_heads_kv = 3, .block_size = 64, .topk = 7, .seqlens_q = {64}, .seqlens_k = {9000}}),
      split_case("one_block_each", {.block_size = 128, .topk = 1, .seqlens_q = {64}, .seqlens_k = {12000}}),
      split_case("three_hundred_queries", {.block_size = 128, .topk = 16, .seqlens_q = {300}, .seqlens_k = {6000}}),
      split_case("forced", {.block_size = 64,
                            .topk = 12,
                            .num_init_blocks = 3,
                            .num_local_blocks = 4,
                            .seqlens_q = {5},
                            .seqlens_k = {8001}}),
      split_case("ragged", {.block_size = 64,
                            .topk = 16,
                            .num_local_blocks = 0,
                            .seqlens_q = {1, 0, 16, 5, 1},
                            .seqlens_k = {5000, 100, 9000, 33, 0},
                            .padding_q = 2}),
      split_case(
          "paged",
          {.block_size = 128, .topk = 16, .page_size = 64, .seqlens_q = {1, 3, 16}, .seqlens_k = {5000, 9001, 127}}),
  };
}

class SplitSelection : public OnHopperWith<NamedShape> {};
INSTANTIATE_TEST_SUITE_P(Cases, SplitSelection, testing::ValuesIn(cases()), shape_name);

TEST_P(SplitSelection, MatchesTheCpu) {
  const Layer layer = device_layer(GetParam().shape);
  expect_selection(layer, run(layer, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"), OPENMSA_BACKEND_CPU);
}

TEST_P(SplitSelection, ScoresMatchTheCpu) {
  const Layer layer = device_layer(GetParam().shape);
  const Buffer scores = run(layer, OPENMSA_OP_BLOCK_SCORES).at("block_scores");
  EXPECT_LT(absolute_error(scores, judged(layer, OPENMSA_OP_BLOCK_SCORES, OPENMSA_BACKEND_CPU).at("block_scores")),
            1e-4);
}

TEST_P(SplitSelection, WholeLayerMatchesTheCpu) { expect_layer(device_layer(GetParam().shape), OPENMSA_BACKEND_CPU); }

}  // namespace
}  // namespace openmsa::test
