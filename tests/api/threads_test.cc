// Several threads calling at once: with one plan, with plans of their own, and in the wrong.
#include <gtest/gtest.h>

#include <functional>
#include <latch>
#include <thread>

#include "support/compare.h"
#include "support/many_threads.h"

namespace openmsa::test {
namespace {

const auto* const kManyThreads = testing::AddGlobalTestEnvironment(new ManyThreads);

constexpr int kCallers = 4;

/// Calls body(caller) from kCallers threads, which start together.
void at_once(const std::function<void(int)>& body) {
  std::latch start(kCallers);
  std::vector<std::jthread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      start.arrive_and_wait();
      body(caller);
    });
  }
}

/// Every tensor that an operation on contiguous keys reads, in a batch large enough to be shared out among threads.
Layer complete_layer(std::uint64_t seed) {
  Layer layer = make_layer({.seqlens_q = {90, 3, 40}, .seqlens_k = {90, 270, 100}}, seed);
  layer.config.num_threads = 3;
  layer.add(run(layer, OPENMSA_OP_BLOCK_SCORES));
  return layer.add(run(layer, OPENMSA_OP_MSA_ATTENTION));
}

/// Every operation but openmsa_append_kv.
TensorMap run_all(const std::function<TensorMap(openmsa_op)>& run_one) {
  TensorMap all;
  for (int op = 0; op < OPENMSA_OP_APPEND_KV; ++op) {
    for (auto& [name, buffer] : run_one(static_cast<openmsa_op>(op))) all[name + " of " + std::to_string(op)] = buffer;
  }
  return all;
}

TEST(Threads, ShareAPlan) {
  std::vector<Layer> layers;
  std::vector<TensorMap> expected, results(kCallers);
  for (int caller = 0; caller < kCallers; ++caller) {
    const Layer& layer = layers.emplace_back(complete_layer(static_cast<std::uint64_t>(caller)));
    expected.push_back(run_all([&](openmsa_op op) { return run(layer, op); }));
  }
  const Plan plan(layers[0].config);
  at_once([&](int caller) {
    const Layer& layer = layers[static_cast<std::size_t>(caller)];
    Workspace workspace;
    results[static_cast<std::size_t>(caller)] = run_all([&](openmsa_op op) {
      TensorMap outputs = poisoned_outputs(layer, op);
      plan.run(op, gather(layer, op, outputs), workspace);
      return outputs;
    });
  });
  for (int caller = 0; caller < kCallers; ++caller) {
    SCOPED_TRACE(caller);
    expect_same_bits(results[static_cast<std::size_t>(caller)], expected[static_cast<std::size_t>(caller)]);
  }
}

TEST(Threads, MakeUseAndDropPlansOfTheirOwn) {
  const Layer layer = complete_layer(1);
  const TensorMap expected = run(layer, OPENMSA_OP_MSA_ATTENTION);
  std::vector<TensorMap> results(kCallers);
  at_once([&](int caller) {
    for (int repeat = 0; repeat < 5; ++repeat) {  // run() makes a plan and drops it
      results[static_cast<std::size_t>(caller)] = run(layer, OPENMSA_OP_MSA_ATTENTION);
    }
  });
  for (const TensorMap& outputs : results) expect_same_bits(outputs, expected);
}

TEST(Threads, StoreTokensInTheirOwnPagesOfOneCache) {
  const Layer all = make_layer({.page_size = 16, .seqlens_q = {30, 40, 50, 60}, .seqlens_k = {30, 40, 50, 60}});
  const TensorMap expected = run(all, OPENMSA_OP_APPEND_KV);
  TensorMap caches = poisoned_outputs(all, OPENMSA_OP_APPEND_KV);
  at_once([&](int caller) {  // each one a sequence of the batch: the others have no keys, and are not stored
    Layer own = all;
    for (std::int64_t b = 0; b < kCallers; ++b) {
      if (b != caller) own.tensors.at("seqlens_k").set(b, 0);
    }
    Workspace workspace;
    Plan(own.config).run(OPENMSA_OP_APPEND_KV, gather(own, OPENMSA_OP_APPEND_KV, caches), workspace);
  });
  expect_same_bits(caches, expected);
}

TEST(Threads, HaveErrorsOfTheirOwn) {
  EXPECT_EQ(openmsa_plan_create(nullptr, nullptr), OPENMSA_INVALID_ARGUMENT);
  const std::string here = openmsa_last_error();
  EXPECT_FALSE(here.empty());
  std::vector<std::string> errors(kCallers);
  at_once([&](int caller) {
    EXPECT_STREQ(openmsa_last_error(), "");
    Config config = make_layer({}).config;
    config.topk = -caller;
    openmsa_plan* plan = nullptr;
    EXPECT_EQ(openmsa_plan_create(&config, &plan), OPENMSA_INVALID_ARGUMENT);
    errors[static_cast<std::size_t>(caller)] = openmsa_last_error();
  });
  for (int caller = 0; caller < kCallers; ++caller) {
    EXPECT_EQ(errors[static_cast<std::size_t>(caller)], "topk: expected at least 1, got " + std::to_string(-caller));
  }
  EXPECT_EQ(openmsa_last_error(), here);
}

}  // namespace
}  // namespace openmsa::test
