// CPU quotas of control groups, read from files such as Linux shows them.
#include "cpu/quota.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "support/temporary_directory.h"

namespace openmsa::test {
namespace {

class Quota : public testing::Test {
 protected:
  void write(const std::string& file, const std::string& text) const {
    const std::filesystem::path path = root_.path() / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text << "\n";
  }
  void write_v1(const std::string& group, const std::string& quota, const std::string& period) const {
    write(group + "/cpu.cfs_quota_us", quota);
    write(group + "/cpu.cfs_period_us", period);
  }
  int cores() const { return cpu::quota_cores(root_.path().string()); }

  static constexpr int kUnlimited = std::numeric_limits<int>::max();
  const TemporaryDirectory root_;
};

TEST_F(Quota, NoGroupsNoLimit) { EXPECT_EQ(cores(), kUnlimited); }

TEST_F(Quota, Version2IsRoundedUp) {
  write("proc/self/cgroup", "0::/job");
  const std::string file = "sys/fs/cgroup/job/cpu.max";
  write(file, "max 100000");
  EXPECT_EQ(cores(), kUnlimited);
  write(file, "50000 100000");
  EXPECT_EQ(cores(), 1);
  write(file, "250000 100000");
  EXPECT_EQ(cores(), 3);
  write(file, "400000 100000");
  EXPECT_EQ(cores(), 4);
}

TEST_F(Quota, Version1IsRoundedUp) {
  write("proc/self/cgroup", "4:memory:/other\n3:cpu,cpuacct:/job\n2:cpuset:/\n0::/");
  const std::string group = "sys/fs/cgroup/cpu,cpuacct/job";
  write_v1(group, "-1", "100000");
  EXPECT_EQ(cores(), kUnlimited);
  write_v1(group, "50000", "100000");
  EXPECT_EQ(cores(), 1);
  write_v1(group, "300000", "100000");
  EXPECT_EQ(cores(), 3);
  write("proc/self/cgroup", "1:cpu:/job");
  write_v1("sys/fs/cgroup/cpu/job", "150000", "100000");
  EXPECT_EQ(cores(), 2);
}

TEST_F(Quota, TheLeastOfAGroupAndThoseAboveItCounts) {
  write("proc/self/cgroup", "0::/a/b/c");
  write("sys/fs/cgroup/a/cpu.max", "200000 100000");
  write("sys/fs/cgroup/a/b/c/cpu.max", "700000 100000");
  EXPECT_EQ(cores(), 2);
  write("sys/fs/cgroup/a/b/c/cpu.max", "100000 100000");
  EXPECT_EQ(cores(), 1);
}

/// A container sees its own group as the top, and in /proc the path that the group has on the host.
TEST_F(Quota, InAContainerTheTopIsItsOwnGroup) {
  write("proc/self/cgroup", "3:cpu,cpuacct:/docker/0123abcd");
  write_v1("sys/fs/cgroup/cpu,cpuacct", "200000", "100000");
  EXPECT_EQ(cores(), 2);
}

TEST_F(Quota, OtherControllersAndBrokenFilesLimitNothing) {
  write("proc/self/cgroup", "nonsense\n5:cpuset:/job\n1:cpu\n0::/job");
  write_v1("sys/fs/cgroup/cpuset/job", "100000", "100000");
  write("sys/fs/cgroup/job/cpu.max", "100000");
  EXPECT_EQ(cores(), kUnlimited);
}

}  // namespace
}  // namespace openmsa::test
