// Limits of control groups, on trees as Linux, Docker and systemd lay them out.
#include "lm/checkpoint/control_group.h"

#include <gtest/gtest.h>

#include <fstream>
#include <limits>

#include "support/temporary_directory.h"

namespace openmsa::lm {
namespace {

constexpr std::uint64_t kUnlimited = std::numeric_limits<std::uint64_t>::max();

class ControlGroup : public testing::Test {
 protected:
  void write(const std::string& path, const std::string& text) const {
    const std::filesystem::path file = root_ / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::uint64_t left() const { return control_group_memory(root_.path()); }

  const test::TemporaryDirectory root_;
};

TEST_F(ControlGroup, NoneHasNoLimit) {
  EXPECT_EQ(left(), kUnlimited);
  write("proc/self/cgroup", "0::/\nnonsense\n1:cpu\n");
  EXPECT_EQ(left(), kUnlimited);
}

TEST_F(ControlGroup, Version2InItsOwnNamespace) {
  write("proc/self/cgroup", "0::/\n");
  write("sys/fs/cgroup/memory.max", "1000\n");
  write("sys/fs/cgroup/memory.current", "700\n");
  EXPECT_EQ(left(), 300u);
  write("sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(left(), kUnlimited);
}

TEST_F(ControlGroup, TheTightestOfNestedOnesCounts) {
  write("proc/self/cgroup", "0::/user.slice/job/step\n");
  write("sys/fs/cgroup/user.slice/memory.max", "5000\n");
  write("sys/fs/cgroup/user.slice/memory.current", "4900\n");
  write("sys/fs/cgroup/user.slice/job/memory.max", "1000\n");
  write("sys/fs/cgroup/user.slice/job/memory.current", "700\n");
  write("sys/fs/cgroup/user.slice/job/step/memory.max", "max\n");
  write("sys/fs/cgroup/user.slice/job/step/memory.current", "600\n");
  EXPECT_EQ(left(), 100u);
}

TEST_F(ControlGroup, Version1) {
  write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/abc\n0::/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", "800\n");
  write("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "1000\n");
  write("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "800\n");
  EXPECT_EQ(left(), 200u);
}

/// Without a namespace of its own, a container reads the host's path and sees its group as the root.
TEST_F(ControlGroup, ThePathMayBeThatOfTheHost) {
  write("proc/self/cgroup", "4:memory:/docker/abc\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n");
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", "800\n");
  EXPECT_EQ(left(), 200u);
}

TEST_F(ControlGroup, CachedFilesAreFree) {
  write("proc/self/cgroup", "0::/a\n");
  write("sys/fs/cgroup/a/memory.max", "1000\n");
  write("sys/fs/cgroup/a/memory.current", "1000\n");
  write("sys/fs/cgroup/a/memory.stat", "anon 300\ninactive_file 450\nactive_file 250\nslab 10\n");
  EXPECT_EQ(left(), 700u);
}

TEST_F(ControlGroup, NothingIsLeftBeyondTheLimit) {
  write("proc/self/cgroup", "0::/\n");
  write("sys/fs/cgroup/memory.max", "1000\n");
  write("sys/fs/cgroup/memory.current", "1200\n");
  EXPECT_EQ(left(), 0u);
}

}  // namespace
}  // namespace openmsa::lm
