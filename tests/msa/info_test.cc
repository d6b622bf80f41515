#include <gmock/gmock.h>
#include <sys/wait.h>

#include <cstdlib>
#include <sstream>

#include "io/json_file.h"
#include "msa/msa.h"

namespace openmsa::test {
namespace {

using testing::HasSubstr;
using Info = MsaTest;

TEST_F(Info, VersionAndHelp) {
  EXPECT_EQ(msa({"--version"}).out, std::string("msa ") + openmsa_version() + "\n");
  for (const char* command : {"attend", "train", "eval", "generate", "bench", "report", "verify", "info"}) {
    EXPECT_THAT(msa({"--help"}).out, HasSubstr(command));
    EXPECT_EQ(msa({command, "--help"}).status, 0);
  }
}

TEST_F(Info, HelpShowsExamplesOfTheCommandItself) {
  for (const std::string command : {"attend", "train", "eval", "generate", "bench", "report", "verify", "info"}) {
    std::istringstream help(msa({command, "--help"}).out);
    for (std::string line; std::getline(help, line);) {
      if (!line.starts_with("  msa ")) continue;
      EXPECT_THAT(line, testing::StartsWith("  msa " + command));
    }
  }
}

TEST_F(Info, HelpOnAFullDiskIsAFailure) {
  for (const char* option : {"--help", "--version", "info"}) {
    const std::string command = std::string(OPENMSA_MSA_BINARY) + " " + option + " >/dev/full 2>" + directory_ / "err";
    EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 1) << option;
    EXPECT_THAT(io::read_text(directory_ / "err"), HasSubstr("cannot write to standard output"));
  }
}

TEST_F(Info, PrintsAndWritesFacts) {
  const MsaRun run = msa({"info", "--json", directory_ / "info.json"});
  EXPECT_EQ(run.status, 0);
  EXPECT_THAT(run.out, HasSubstr(openmsa_cpu_features()));
  EXPECT_THAT(run.out, HasSubstr(openmsa_cuda_device()));
  const nlohmann::json facts = io::read_json(directory_ / "info.json");
  EXPECT_EQ(facts["version"], openmsa_version());
  EXPECT_GE(facts["cores"], 1);
  EXPECT_EQ(facts["backends"][0]["name"], "cpu");
}

TEST_F(Info, ShowsTheThreadsThatTheEnvironmentLeaves) {
  ::setenv("OPENMSA_NUM_THREADS", "1", 1);
  EXPECT_THAT(msa({"info"}).out, HasSubstr("cpu (SIMD, 1 threads;"));
  ::setenv("OPENMSA_NUM_THREADS", "none", 1);
  expect_refusal(msa({"info"}), "OPENMSA_NUM_THREADS: expected a positive number, got none");
  ::unsetenv("OPENMSA_NUM_THREADS");
}

/// OpenBLAS starts threads when it is loaded, so it is loaded by those alone that multiply.
TEST_F(Info, IsNotLinkedWithOpenBlas) {
  const std::string libraries = directory_ / "libraries";
  ASSERT_EQ(std::system(("ldd " OPENMSA_MSA_BINARY " >" + libraries).c_str()), 0);
  EXPECT_THAT(io::read_text(libraries), testing::AllOf(HasSubstr("libtbb"), testing::Not(HasSubstr("blas"))));
}

TEST_F(Info, JsonToStandardOutput) { EXPECT_THAT(msa({"info", "--json", "/dev/stdout"}).out, HasSubstr("\"cores\"")); }

}  // namespace
}  // namespace openmsa::test
