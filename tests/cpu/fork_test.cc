// A child of fork has none of its parent's threads, and oneTBB's locks as they were: calls there never wait for either.
#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <thread>

#include "support/compare.h"
#include "support/in_child.h"
#include "support/many_threads.h"

namespace openmsa::test {
namespace {

const auto* const kManyThreads = testing::AddGlobalTestEnvironment(new ManyThreads);

constexpr openmsa_op kOp = OPENMSA_OP_MSA_ATTENTION;
constexpr int kChildren = 8;

/// A plan that a thread of this process is using all the time.
class Fork : public testing::Test {
 protected:
  Fork() {
    layer_.config.num_threads = 4;
    plan_.emplace(layer_.config);
    other_ = std::thread([this] {
      Workspace workspace;
      TensorMap outputs = poisoned_outputs(layer_, kOp);
      const Tensors tensors = gather(layer_, kOp, outputs);
      for (; !stop_; ++calls_) plan_->run(kOp, tensors, workspace);
    });
    while (calls_ == 0) std::this_thread::yield();
  }
  ~Fork() override {
    stop_ = true;
    other_.join();
  }

  /// Whether a call with `plan` gives the results of the parent.
  bool is_right(const Plan& plan) {
    Workspace workspace;
    TensorMap outputs = poisoned_outputs(layer_, kOp);
    plan.run(kOp, gather(layer_, kOp, outputs), workspace);
    for (const auto& [name, values] : outputs) {
      if (!values.same_bits(expected_.at(name))) return false;
    }
    return true;
  }

  Layer layer_ = make_layer({.num_heads_q = 8, .topk = 3, .seqlens_q = {300}, .seqlens_k = {300}});
  const TensorMap expected_ = openmsa::test::run(layer_, kOp);
  std::optional<Plan> plan_;
  std::atomic<int> calls_ = 0;
  std::atomic<bool> stop_ = false;
  std::thread other_;
};

TEST_F(Fork, AChildUsesThePlanOfARunningCall) {
  for (int i = 0; i < kChildren; ++i) ASSERT_EQ(in_child([&] { return is_right(*plan_); }), 0) << "child " << i;
}

TEST_F(Fork, AChildMakesAndDropsPlans) {
  for (int i = 0; i < kChildren; ++i) {
    const auto drop_and_make = [&] {
      plan_.reset();
      return is_right(Plan(layer_.config));
    };
    ASSERT_EQ(in_child(drop_and_make), 0) << "child " << i;
  }
}

TEST_F(Fork, AChildHasOneThreadByDefault) {
  EXPECT_EQ(in_child([] { return default_threads() == 1; }), 0);
}

}  // namespace
}  // namespace openmsa::test
