#include "lm/ops/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "support/in_child.h"

namespace openmsa::test {
namespace {

/// Whether a loop reaches every row once.
bool covers_all_rows() {
  std::vector<int> rows(1000);
  lm::parallel_chunks(1000, 7, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) ++rows[static_cast<std::size_t>(row)];
  });
  return rows == std::vector<int>(1000, 1);
}

TEST(Parallel, ChunksCoverAllRows) { EXPECT_TRUE(covers_all_rows()); }

/// A child of fork has none of its parent's threads, and oneTBB's locks as they were.
TEST(Parallel, AChildOfForkBesideALoopRunsLoopsOfItsOwn) {
  auto limit = std::make_unique<lm::ThreadLimit>(0);
  std::atomic<int> loops = 0;
  std::atomic<bool> stop = false;
  std::thread other([&] {
    for (; !stop; ++loops) covers_all_rows();
  });
  while (loops == 0) std::this_thread::yield();
  const auto in_the_child = [&] {
    const lm::ThreadLimit own(2);
    limit.reset();
    const std::thread::id here = std::this_thread::get_id();
    bool is_here = true;
    lm::parallel_chunks(100, 1, [&](std::int64_t, std::int64_t) { is_here &= std::this_thread::get_id() == here; });
    return is_here && covers_all_rows();
  };
  for (int i = 0; i < 8; ++i) EXPECT_EQ(in_child(in_the_child), 0) << "child " << i;
  stop = true;
  other.join();
}

}  // namespace
}  // namespace openmsa::test
