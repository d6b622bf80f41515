// A server's day on the CPU: requests join, some behind the pages of another one, grow, and leave; pages that come back
// are poisoned with NaN and used again. Every step is judged by the reference.
#include <gtest/gtest.h>

#include "support/compare.h"
#include "support/serving_memory.h"

namespace openmsa::test {
namespace {

constexpr ServingLimits kLimits{
    .slots = 6, .num_pages = 70, .page_size = 8, .max_pages = 24, .max_new = 4, .max_prompt = 80};
constexpr std::int64_t kSteps = 2000;

LayerShape shape(openmsa_dtype dtype) {
  return {.dtype = dtype, .head_dim = 16, .index_dim = 16, .block_size = 16, .topk = 3};
}

/// Appends the step's tokens on the CPU and on the reference.
void append(ServingMemory& memory) {
  TensorMap expected = memory.caches();
  run_into(memory.layer(), OPENMSA_OP_APPEND_KV, memory.caches());
  run_into(memory.layer().on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_APPEND_KV, expected);
  expect_same_bits(memory.caches(), expected);
}

/// The whole layer: its selection is the reference's, its o and lse those of attention over its own selection.
void attend(const ServingMemory& memory) {
  Layer layer = memory.layer();
  layer.add(memory.caches());
  const TensorMap got = run(layer, OPENMSA_OP_MSA_ATTENTION);
  Layer judge = layer.on(OPENMSA_BACKEND_REFERENCE);
  expect_same_selection(layer, got.at("topk_indices"), run(judge, OPENMSA_OP_SELECT_BLOCKS).at("topk_indices"),
                        run(judge, OPENMSA_OP_BLOCK_SCORES).at("block_scores"));
  judge.add({{"topk_indices", got.at("topk_indices")}});
  const TensorMap expected = run(judge, OPENMSA_OP_SPARSE_ATTENTION);
  const Tolerance allowed = tolerance(layer.config.dtype);
  EXPECT_LE(relative_error(got.at("o"), expected.at("o")), allowed.o);
  EXPECT_LE(absolute_error(got.at("lse"), expected.at("lse")), allowed.lse);
}

class Serving : public testing::TestWithParam<openmsa_dtype> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, Serving, testing::Values(OPENMSA_FLOAT32, OPENMSA_BFLOAT16),
                         [](const testing::TestParamInfo<openmsa_dtype>& info) {
                           return info.param == OPENMSA_FLOAT32 ? "fp32" : "bf16";
                         });

TEST_P(Serving, EveryStepIsThatOfTheReference) {
  ServingTrace trace(kLimits, 1);
  ServingMemory memory(shape(GetParam()), kLimits, 1);
  for (std::int64_t step = 1; step <= kSteps; ++step) {
    SCOPED_TRACE(testing::Message() << "step " << step);
    memory.apply(trace.next());
    append(memory);
    attend(memory);
    if (HasFailure()) return;
  }
  // The trace had what it is for.
  EXPECT_GE(trace.joined(), kSteps / 40);
  EXPECT_GE(trace.joined_behind_a_prefix(), kSteps / 200);
  EXPECT_GE(trace.stalled(), kSteps / 200);
}

}  // namespace
}  // namespace openmsa::test
