// As many threads as the tests ask for, also on a machine with fewer cores.
#pragma once

#include <gtest/gtest.h>
#include <tbb/global_control.h>

#include <optional>

namespace openmsa::test {

/// While a program's tests run; for testing::AddGlobalTestEnvironment.
class ManyThreads : public testing::Environment {
 public:
  static constexpr int kThreads = 8;

  void SetUp() override { limit_.emplace(tbb::global_control::max_allowed_parallelism, kThreads); }
  void TearDown() override { limit_.reset(); }

 private:
  std::optional<tbb::global_control> limit_;
};

}  // namespace openmsa::test
