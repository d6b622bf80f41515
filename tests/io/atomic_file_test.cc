#include "io/atomic_file.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <stdexcept>

#include "io/json_file.h"
#include "support/temporary_directory.h"

namespace openmsa::io {
namespace {

using test::TemporaryDirectory;

TEST(AtomicFile, AppearsOnCommit) {
  const TemporaryDirectory directory;
  AtomicFile file(directory / "out");
  file.write("hello ");
  file.write("world");
  EXPECT_FALSE(std::filesystem::exists(directory / "out"));
  file.commit();
  EXPECT_EQ(read_text(directory / "out"), "hello world");
  EXPECT_EQ(directory.num_entries(), 1u);
}

TEST(AtomicFile, WithoutCommitNothingIsLeftAndTheOldFileStays) {
  const TemporaryDirectory directory;
  write_json(directory / "out", 1);
  { AtomicFile(directory / "out").write("2"); }
  EXPECT_EQ(read_json(directory / "out"), 1);
  EXPECT_EQ(directory.num_entries(), 1u);
}

TEST(AtomicFile, FollowsLinks) {
  const TemporaryDirectory directory;
  write_json(directory / "target", 1);
  std::filesystem::create_symlink("target", directory.path() / "link");
  write_json(directory / "link", 2);
  EXPECT_TRUE(std::filesystem::is_symlink(directory.path() / "link"));
  EXPECT_EQ(read_json(directory / "target"), 2);
}

TEST(AtomicFile, FollowsLinksToFilesThatDoNotExistYet) {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "folder");
  std::filesystem::create_symlink("folder/target", directory.path() / "link");
  write_json(directory / "link", 3);
  EXPECT_TRUE(std::filesystem::is_symlink(directory.path() / "link"));
  EXPECT_EQ(read_json(directory / "folder/target"), 3);
  std::filesystem::create_symlink("circle", directory.path() / "circle");
  EXPECT_THROW(write_json(directory / "circle", 3), std::runtime_error);
}

TEST(AtomicFile, KeepsThePermissionsOfTheFileThatItReplaces) {
  const TemporaryDirectory directory;
  write_json(directory / "secret", 1);
  std::filesystem::permissions(directory / "secret", std::filesystem::perms(0600));
  write_json(directory / "secret", 2);
  EXPECT_EQ(std::filesystem::status(directory / "secret").permissions(), std::filesystem::perms(0600));
}

TEST(AtomicFile, TakesNamesAsLongAsTheSystemDoes) {
  const TemporaryDirectory directory;
  const std::string name(250, 'n');
  write_json(directory / name, 1);
  EXPECT_EQ(read_json(directory / name), 1);
  EXPECT_THROW(AtomicFile(directory / std::string(300, 'n')), std::runtime_error);
}

TEST(AtomicFile, RemovesWhatAKilledProcessHasLeftAndNothingElse) {
  const TemporaryDirectory directory;
  const pid_t child = ::fork();
  if (child == 0) {
    AtomicFile file(directory / "out");
    file.write("half");
    std::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(directory.num_entries(), 1u);
  AtomicFile first(directory / "first");
  EXPECT_EQ(directory.num_entries(), 1u);
  write_json(directory / "second", 2);
  first.write("1");
  first.commit();
  EXPECT_EQ(read_json(directory / "first"), 1);
  EXPECT_EQ(directory.num_entries(), 2u);
}

TEST(AtomicFile, TellsBeforehandWhatCannotBeCreated) {
  const TemporaryDirectory directory;
  EXPECT_THROW(require_creatable(directory / "absent/out"), std::runtime_error);
  EXPECT_NO_THROW(require_creatable(directory / "out"));
  EXPECT_NO_THROW(require_creatable("/dev/stdout"));
  EXPECT_EQ(directory.num_entries(), 0u);
}

TEST(AtomicFile, WritesDevicesDirectly) {
  AtomicFile file("/dev/null");
  file.write("gone");
  file.commit();
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST(AtomicFile, RefusesWhatCannotBeCreated) {
  const TemporaryDirectory directory;
  EXPECT_THROW(AtomicFile(directory / "absent/out"), std::runtime_error);
  EXPECT_THROW(AtomicFile(directory.path()), std::runtime_error);
}

}  // namespace
}  // namespace openmsa::io
