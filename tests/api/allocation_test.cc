// The CPU backend works in the caller's workspace alone: a call takes no other memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "judge/shards.h"
#include "support/allocations.h"
#include "support/many_threads.h"
#include "support/run.h"

namespace openmsa::test {
namespace {

const auto* const kManyThreads = testing::AddGlobalTestEnvironment(new ManyThreads);

struct Case {
  openmsa_op op;
  std::int32_t num_threads;
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (int op = 0; op < OPENMSA_OP_COUNT; ++op) {
    for (const std::int32_t num_threads : {1, 2, 7}) cases.push_back({static_cast<openmsa_op>(op), num_threads});
  }
  return cases;
}

std::string case_name(const testing::TestParamInfo<Case>& info) {
  return std::string(openmsa_op_name(info.param.op)) + "_on_" + std::to_string(info.param.num_threads);
}

/// Inputs of `op`: prompts, decode, and what earlier operations give.
Layer layer_for(openmsa_op op, openmsa_dtype dtype) {
  const std::int32_t page_size = op == OPENMSA_OP_APPEND_KV ? 16 : 0;
  Layer layer =
      make_layer({.dtype = dtype, .page_size = page_size, .seqlens_q = {70, 1, 60}, .seqlens_k = {70, 1000, 60}});
  if (op == OPENMSA_OP_APPEND_KV) {
    for (const char* name : {"k", "v", "index_k"}) {
      layer.tensors[name] = rows(layer.tensors.at(name), 0, layer.total_q());
    }
    return layer;
  }
  layer.add(run(layer, OPENMSA_OP_BLOCK_SCORES));
  layer.add(run(layer, OPENMSA_OP_MSA_ATTENTION));
  layer.tensors["all_candidates"] = stacked({run(layer, OPENMSA_OP_SELECT_CANDIDATES).at("candidates")});
  layer.tensors["partial_o"] = stacked({layer.tensors.at("o")});
  layer.tensors["partial_lse"] = stacked({layer.tensors.at("lse")});
  return layer;
}

class Allocation : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Calls, Allocation, testing::ValuesIn(all_cases()), case_name);

TEST_P(Allocation, ACallTakesNoMemory) {
  for (const openmsa_dtype dtype : {OPENMSA_FLOAT32, OPENMSA_BFLOAT16}) {
    Layer layer = layer_for(GetParam().op, dtype);
    layer.config.num_threads = GetParam().num_threads;
    const Plan plan(layer.config);
    TensorMap outputs = poisoned_outputs(layer, GetParam().op);
    const Tensors tensors = gather(layer, GetParam().op, outputs);
    Workspace memory;
    const openmsa_workspace workspace = memory.reserve(plan.workspace_bytes(GetParam().op));
    // oneTBB takes memory for threads and tasks when it first needs it, and keeps it; a thread that gets its first task
    // late does so in a later call. What openmsa took it would take in every call: the fewest of many count.
    std::int64_t fewest = std::numeric_limits<std::int64_t>::max();
    for (int repeat = 0; repeat < 10; ++repeat) {
      const std::int64_t before = num_allocations();
      plan.run(GetParam().op, tensors, workspace);
      fewest = std::min(fewest, num_allocations() - before);
    }
    EXPECT_EQ(fewest, 0);
  }
}

/// The count counts.
TEST(Allocations, AreSeen) {
  const std::int64_t before = num_allocations();
  const Plan plan(make_layer({}).config);
  EXPECT_GT(num_allocations(), before);
}

}  // namespace
}  // namespace openmsa::test
