// msa train: what becomes of a run that diverges, is stopped, is repeated or is resumed from elsewhere.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "io/json_file.h"
#include "msa/msa.h"

namespace openmsa::test {
namespace {

namespace fs = std::filesystem;

class Train : public MsaTest {
 protected:
  Train() {
    std::ofstream text(directory_ / "text");
    for (int i = 0; i < 3000; ++i) text << i << " is a number\n";
  }

  std::vector<std::string> arguments(std::vector<std::string> options, const std::string& text) const {
    std::istringstream words(
        "--batch 1 --seqlen 32 --short-batch 0 --layers 2 --hidden 32 --heads-q 4 --heads-kv 2 --head-dim 16 "
        "--intermediate 32 --index-dim 16 --block-size 8 --topk 4 --threads 1");
    std::vector<std::string> all = {"train", "--output", model_, "--text", text};
    for (std::string word; words >> word;) all.push_back(word);
    all.insert(all.end(), options.begin(), options.end());
    return all;
  }
  MsaRun train(const std::vector<std::string>& options) const { return msa(arguments(options, directory_ / "text")); }

  const std::string model_ = directory_ / "model";
};

TEST_F(Train, StopsWhenItDivergesAndKeepsWhatWasThere) {
  ASSERT_EQ(train({"--steps", "2"}).status, 0);
  const std::string before = io::read_text(model_ + "/model.safetensors");
  expect_refusal(train({"--steps", "2", "--lr", "nan", "--force"}), "--lr");
  EXPECT_EQ(io::read_text(model_ + "/model.safetensors"), before);
  expect_refusal(train({"--steps", "100", "--lr", "1e9", "--lr-warmup", "0", "--weight-decay", "1e9", "--force"}),
                 "training diverged", 1);
  EXPECT_FALSE(fs::exists(model_ + "/model.safetensors")) << "no model of NaNs";
}

TEST_F(Train, ReplacesAnEarlierRunOnlyByForce) {
  ASSERT_EQ(train({"--steps", "2"}).status, 0);
  const std::string log = io::read_text(model_ + "/log.jsonl");
  expect_refusal(train({"--steps", "3"}), "--force replaces it");
  EXPECT_EQ(io::read_text(model_ + "/log.jsonl"), log);
  EXPECT_EQ(train({"--steps", "3", "--force"}).status, 0);
  EXPECT_NE(io::read_text(model_ + "/log.jsonl"), log);
}

TEST_F(Train, SaysThatThereIsNothingToResume) {
  expect_refusal(msa({"train", "--output", model_, "--resume"}), "nothing to resume");
}

TEST_F(Train, ReadsDecimalNumbers) {
  const MsaRun run = train({"--steps", "010"});
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_THAT(run.out, testing::HasSubstr("10 steps"));
}

TEST_F(Train, TakesTextUnderANameThatIsNoUtf8) {
  const std::string name = directory_ / "t\xff";
  fs::copy_file(directory_ / "text", name);
  const MsaRun run = msa(arguments({"--steps", "1"}, name));
  EXPECT_EQ(run.status, 0) << run.err;
}

/// The command on a terminal of so many columns: what it shows there, and its exit status after SIGINT.
std::pair<std::string, int> interrupted(std::vector<std::string> arguments, unsigned short columns) {
  const int terminal = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  ::grantpt(terminal);
  ::unlockpt(terminal);
  const winsize size{24, columns, 0, 0};
  ::ioctl(terminal, TIOCSWINSZ, &size);
  const std::string name = ::ptsname(terminal);
  std::vector<char*> argv = {const_cast<char*>(OPENMSA_MSA_BINARY)};
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGINT, SIG_DFL);  // which the caller may ignore
    ::dup2(::open(name.c_str(), O_RDWR | O_NOCTTY), STDERR_FILENO);
    ::execv(OPENMSA_MSA_BINARY, argv.data());
    ::_exit(99);
  }
  // The bar appears after two seconds.
  std::string shown;
  std::array<char, 4096> bytes;
  while (shown.size() < 200) {
    const ssize_t count = ::read(terminal, bytes.data(), bytes.size());
    if (count <= 0) break;
    shown.append(bytes.data(), static_cast<std::size_t>(count));
  }
  ::kill(child, SIGINT);
  while (true) {
    const ssize_t count = ::read(terminal, bytes.data(), bytes.size());
    if (count <= 0) break;
    shown.append(bytes.data(), static_cast<std::size_t>(count));
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ::close(terminal);
  return {shown, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status)};
}

TEST_F(Train, SavesItsStepOnCtrlCAndIsResumedFromAnotherFolder) {
  const fs::path here = fs::current_path();
  fs::current_path(directory_.path());
  const auto [shown, status] = interrupted(arguments({"--steps", "1000000"}, "text"), 40);
  fs::current_path(here);
  EXPECT_EQ(status, 1) << shown;
  EXPECT_THAT(shown, testing::HasSubstr("which is saved; --resume goes on"));
  const std::string cleared = "\r\x1b[K";
  std::size_t begin = shown.find(cleared), bars = 0;
  for (std::size_t end = begin; end != std::string::npos; begin = end, ++bars) {
    end = shown.find(cleared, begin + cleared.size());
    if (end == std::string::npos) break;
    EXPECT_LT(end - begin - cleared.size(), 40u) << "a line that wraps is not cleared";
  }
  EXPECT_GT(bars, 1u) << shown;
  // The run is a long one: it is stopped again at once.
  const auto [again, second] = interrupted({"train", "--output", model_, "--resume"}, 40);
  EXPECT_EQ(second, 1) << again;
  EXPECT_THAT(again, testing::HasSubstr("which is saved"));
}

TEST_F(Train, StopsGeneratingWhereTheDiskIsFull) {
  ASSERT_EQ(train({"--steps", "1"}).status, 0);
  const std::string command = std::string(OPENMSA_MSA_BINARY) +
                              " generate --prompt x --max-new-tokens 100000 --model " + model_ + " --json " +
                              directory_ / "json" + " >/dev/full 2>" + directory_ / "err";
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 1);
  EXPECT_EQ(io::read_text(directory_ / "err"), "msa: cannot write to standard output\n");
  EXPECT_FALSE(fs::exists(directory_ / "json"));
}

}  // namespace
}  // namespace openmsa::test
