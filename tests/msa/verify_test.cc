#include <gmock/gmock.h>

#include <set>

#include "io/json_file.h"
#include "msa/msa.h"

namespace openmsa::test {
namespace {

using testing::HasSubstr;
using testing::Not;

class Verify : public MsaTest {
 protected:
  nlohmann::json cpu_figures() const { return io::read_json(directory_ / "verify.json")["backends"][0]; }
};

TEST_F(Verify, TheCpuIsRightInEveryOperationAndDtype) {
  const MsaRun run = msa({"verify", "--json", directory_ / "verify.json"});
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr(" comparisons, 0 wrong"));
  EXPECT_THAT(run.out, Not(HasSubstr("WRONG")));
  const nlohmann::json cpu = cpu_figures();
  EXPECT_EQ(cpu["backend"], "cpu");
  std::set<std::string> operations, dtypes;
  for (const nlohmann::json& result : cpu["results"]) {
    operations.insert(result["operation"]);
    dtypes.insert(result["dtype"]);
    EXPECT_TRUE(result["is_right"]) << result;
    EXPECT_LE(result["error"], result["allowed"]) << result;
    EXPECT_GE(result["cases"], 1);
  }
  EXPECT_EQ(operations.size(), OPENMSA_OP_COUNT);
  EXPECT_EQ(dtypes, (std::set<std::string>{"fp32", "bf16", "fp16", "fp8 keys"}));
}

/// Rounding passes for an error when less than it is allowed.
TEST_F(Verify, WhatDiffersIsNamedAndFails) {
  const MsaRun run = msa({"verify", "--backend", "cpu", "--tolerance", "0.01", "--json", directory_ / "verify.json"});
  EXPECT_EQ(run.status, 1);
  EXPECT_THAT(run.err, testing::MatchesRegex("msa: [0-9]+ of [0-9]+ results differ from the reference\n"));
  EXPECT_THAT(run.out, HasSubstr("WRONG: o of sparse_attention in bf16: error"));
  EXPECT_THAT(run.out, Not(HasSubstr("WRONG: k_cache")));
  const nlohmann::json cpu = cpu_figures();
  EXPECT_GT(cpu["wrong"], 0);
  for (const nlohmann::json& result : cpu["results"]) {
    EXPECT_EQ(result["is_right"], result["error"] <= result["allowed"]) << result;
  }
}

TEST_F(Verify, ABackendThatCannotRunIsRefused) {
  const MsaRun run = msa({"verify", "--backend", "cuda"});
  if (run.status == 0) GTEST_SKIP() << "this machine has a GPU that can";
  expect_refusal(run, "CUDA backend");
}

}  // namespace
}  // namespace openmsa::test
