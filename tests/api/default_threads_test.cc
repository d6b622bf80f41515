// How many threads a plan has that does not say.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <openmsa/openmsa.hpp>

#include "support/run.h"

namespace openmsa::test {
namespace {

class DefaultThreads : public testing::Test {
 protected:
  void SetUp() override { clear(); }
  void TearDown() override { clear(); }
  static void clear() {
    ::unsetenv("OPENMSA_NUM_THREADS");
    ::unsetenv("OMP_NUM_THREADS");
  }
};

TEST_F(DefaultThreads, TheEnvironmentLowersThem) {
  const std::int32_t all = default_threads();
  EXPECT_GE(all, 1);
  ::setenv("OMP_NUM_THREADS", "1,4", 1);
  EXPECT_EQ(default_threads(), 1);
  ::setenv("OPENMSA_NUM_THREADS", "100000", 1);
  EXPECT_EQ(default_threads(), all) << "our own variable comes first; there are no more cores than there are";
  ::setenv("OPENMSA_NUM_THREADS", "", 1);
  EXPECT_EQ(default_threads(), 1) << "an empty variable is none";
  ::setenv("OMP_NUM_THREADS", "many", 1);
  EXPECT_EQ(default_threads(), all) << "not ours to refuse";
}

TEST_F(DefaultThreads, APlanTakesThem) {
  const Config config = make_layer({}).config;
  const std::size_t all = Plan(config).workspace_bytes(OPENMSA_OP_MSA_ATTENTION);
  ::setenv("OPENMSA_NUM_THREADS", "1", 1);
  const std::size_t one = Plan(config).workspace_bytes(OPENMSA_OP_MSA_ATTENTION);
  EXPECT_LE(one, all);
  Config said = config;
  said.num_threads = 1;
  EXPECT_EQ(one, Plan(said).workspace_bytes(OPENMSA_OP_MSA_ATTENTION));
}

TEST_F(DefaultThreads, WhatIsNoNumberOfThreadsIsRefused) {
  for (const char* text : {"0", "-2", "two", "2x", "99999999999"}) {
    ::setenv("OPENMSA_NUM_THREADS", text, 1);
    std::int32_t threads = 0;
    EXPECT_EQ(openmsa_default_threads(&threads), OPENMSA_INVALID_ARGUMENT) << text;
    EXPECT_THAT(openmsa_last_error(), testing::HasSubstr("OPENMSA_NUM_THREADS: expected a positive number, got"));
    Config config = make_layer({}).config;
    EXPECT_THROW(Plan{config}, Error) << text;
    config.num_threads = 2;
    EXPECT_NO_THROW(Plan{config}) << "nothing is asked of the environment";
  }
  EXPECT_EQ(openmsa_default_threads(nullptr), OPENMSA_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace openmsa::test
