// Runs the tests of the CPU backend with one of the instruction sets that this machine has, not the best one:
// OPENMSA_TEST_INSTRUCTION_SET=SSE4 test_cpu. Names are Highway's, for which bf16 is multiplied in fp32, and those of
// products in pairs, AVX512_BF16 and AMX_BF16, beside which all else runs as it always does. On machines without it
// everything is skipped.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdlib>
#include <string>

#include "cpu/tile/tile.h"

namespace openmsa::test {
namespace {

class InstructionSet : public testing::Environment {
 public:
  void SetUp() override {
    const char* name = std::getenv("OPENMSA_TEST_INSTRUCTION_SET");
    if (name == nullptr) return;
    for (const cpu::PairOps* ops : cpu::all_pair_ops()) {
      if (std::string(ops->name) == name) return cpu::use_pair_ops(ops);
    }
    for (std::int64_t rest = hwy::SupportedTargets(); rest != 0; rest &= rest - 1) {
      const std::int64_t target = rest & -rest;
      if (std::string(hwy::TargetName(target)) != name) continue;
      cpu::use_pair_ops(nullptr);
      return hwy::SetSupportedTargetsForTest(target);
    }
    GTEST_SKIP() << "this machine has no " << name;
  }
};
const auto* const kInstructionSet = testing::AddGlobalTestEnvironment(new InstructionSet);

}  // namespace
}  // namespace openmsa::test
