// Workspace carved front to back: what is measured is what is taken.
#include "core/arena.h"

#include <gtest/gtest.h>

#include <array>

namespace openmsa::core {
namespace {

TEST(Arena, MeasuresWhatItTakes) {
  alignas(64) std::array<std::byte, 256> memory;
  Arena measuring, taking(memory.data());
  EXPECT_EQ(measuring.take<float>(3), nullptr);
  EXPECT_EQ(measuring.take<std::byte>(65), nullptr);
  auto* first = reinterpret_cast<std::byte*>(taking.take<float>(3));
  std::byte* second = taking.take<std::byte>(65);
  EXPECT_EQ(first, memory.data());
  EXPECT_EQ(second, memory.data() + 64);  // every piece begins on a 64-byte boundary
  EXPECT_EQ(taking.used(), 64u + 128u);
  EXPECT_EQ(measuring.used(), taking.used());
}

TEST(Arena, NothingCostsNothing) {
  Arena arena;
  arena.take<double>(0);
  EXPECT_EQ(arena.used(), 0u);
}

}  // namespace
}  // namespace openmsa::core
