// From storage to fp32 with the best instruction set of the machine.
#include <gtest/gtest.h>

#include <cmath>

#include "core/dtype.h"
#include "cpu/tile/tile.h"

namespace openmsa::test {
namespace {

TEST(WidenE4M3, EveryCodeInEveryLane) {
  constexpr std::int64_t kCodes = 256;
  for (std::int64_t shift = 0; shift < 17; ++shift) {
    for (const std::int64_t count : {kCodes, kCodes - 1, kCodes - 9, std::int64_t{3}}) {
      std::byte codes[kCodes];
      float values[kCodes + 1];
      for (std::int64_t i = 0; i < kCodes; ++i) codes[i] = static_cast<std::byte>((i + shift) % kCodes);
      values[count] = -1;
      cpu::tile_ops().widen(OPENMSA_FLOAT8_E4M3, codes, values, count, 1);
      for (std::int64_t i = 0; i < count; ++i) {
        const float expected = core::to_float(core::Float8E4M3{static_cast<std::uint8_t>(codes[i])});
        ASSERT_EQ(std::isnan(values[i]), std::isnan(expected)) << "code " << static_cast<int>(codes[i]);
        if (std::isnan(expected)) continue;
        ASSERT_EQ(values[i], expected) << "code " << static_cast<int>(codes[i]);
        ASSERT_EQ(std::signbit(values[i]), std::signbit(expected));
      }
      ASSERT_EQ(values[count], -1);
    }
  }
}

}  // namespace
}  // namespace openmsa::test
