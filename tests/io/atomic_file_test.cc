#include "io/atomic_file.h"

#include <gtest/gtest.h>

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
