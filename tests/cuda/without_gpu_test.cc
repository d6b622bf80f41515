// A machine or a build that cannot run the CUDA backend says so; everything else works as before.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "support/compare.h"

namespace openmsa::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class WithoutGpu : public testing::Test {
 protected:
  /// Why no plan of `config` can be made; none where one can.
  static std::optional<Error> refusal(const Config& config) {
    try {
      Plan{config};
      return {};
    } catch (const Error& error) {
      return error;
    }
  }

  Layer layer_ = make_layer({.dtype = OPENMSA_BFLOAT16, .block_size = 64});
};

TEST_F(WithoutGpu, APlanSaysWhatWasFound) {
  const auto error = refusal(layer_.on(OPENMSA_BACKEND_CUDA).config);
  if (!error) GTEST_SKIP() << "there is a GPU here";
  EXPECT_EQ(error->status(), OPENMSA_UNSUPPORTED);
#ifdef OPENMSA_TEST_HAS_CUDA
  EXPECT_THAT(error->what(),
              AllOf(HasSubstr("backend: expected a GPU of compute capability"), HasSubstr("the CPU backend works")));
#else
  EXPECT_THAT(error->what(), HasSubstr("backend: this build of openmsa has no CUDA backend"));
#endif
}

TEST_F(WithoutGpu, ContradictionsAreFoundFirst) {
  layer_.config.topk = 0;
  const auto error = refusal(layer_.on(OPENMSA_BACKEND_CUDA).config);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->status(), OPENMSA_INVALID_ARGUMENT);
  EXPECT_THAT(error->what(), HasSubstr("topk"));
}

TEST_F(WithoutGpu, TheCpuStillWorks) {
  refusal(layer_.on(OPENMSA_BACKEND_CUDA).config);
  const TensorMap out = run(layer_.on(OPENMSA_BACKEND_CPU), OPENMSA_OP_MSA_ATTENTION);
  EXPECT_LT(relative_error(out.at("o"), run(layer_.on(OPENMSA_BACKEND_REFERENCE), OPENMSA_OP_MSA_ATTENTION).at("o")),
            tolerance(OPENMSA_BFLOAT16).o);
}

}  // namespace
}  // namespace openmsa::test
