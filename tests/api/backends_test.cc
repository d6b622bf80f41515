// The table of backends.
#include "api/backends.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace openmsa::test {
namespace {

TEST(Backends, EachHasARowAndOnlyTheCpuKeepsSomethingInAPlan) {
  for (const openmsa_backend name :
       {OPENMSA_BACKEND_CPU, OPENMSA_BACKEND_REFERENCE, OPENMSA_BACKEND_REFERENCE_FLOAT32, OPENMSA_BACKEND_CUDA}) {
    SCOPED_TRACE(static_cast<int>(name));
    const core::Backend& backend = api::backend(name);
    EXPECT_NE(backend.check_plan, nullptr);
    EXPECT_NE(backend.workspace_bytes, nullptr);
    EXPECT_NE(backend.run, nullptr);
    EXPECT_EQ(backend.make_state != nullptr, name == OPENMSA_BACKEND_CPU) << "threads are the CPU's alone";
  }
}

TEST(Backends, AValueWithoutARowIsADefect) {
  try {
    api::backend(static_cast<openmsa_backend>(99));
    FAIL() << "nothing was thrown";
  } catch (const core::Failure& failure) {
    EXPECT_EQ(failure.status(), OPENMSA_INTERNAL);
    EXPECT_THAT(failure.what(), testing::HasSubstr("99"));
  }
}

}  // namespace
}  // namespace openmsa::test
