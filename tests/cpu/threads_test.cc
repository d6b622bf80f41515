// The slots of a loop tell apart the calls that run at the same time, and memory is there for as many as there are threads.
#include "cpu/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace openmsa::cpu {
namespace {

/// Loops of two callers on the same threads, of which each waits in its first item for the other one, for a while.
TEST(Threads, SlotsStayBelowTheirNumber) {
  for (const int count : {1, 2, 3}) {
    const Threads threads(count);
    std::atomic<int> running = 0, calls = 0, outside = 0;
    const auto loop = [&] {
      std::atomic<bool> is_first = true;
      threads.for_each(64, [&](std::int64_t, int slot) {
        if (is_first.exchange(false)) {
          ++running;
          const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
          while (running < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
        }
        ++calls;
        outside += slot < 0 || slot >= count;
      });
    };
    std::thread other(loop);
    loop();
    other.join();
    EXPECT_EQ(calls, 2 * 64) << count << " threads";
    EXPECT_EQ(outside, 0) << count << " threads";
  }
}

}  // namespace
}  // namespace openmsa::cpu
